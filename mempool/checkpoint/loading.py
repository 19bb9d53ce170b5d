"""``load``: fills a model from a safetensors file, packing layer by layer: the dense model is never in memory whole."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mempool.checkpoint import prefixes
from mempool.checkpoint.filling import FLOATS, Filling, Shared, require_shape, tensors_of
from mempool.checkpoint.stored_layers import stored_layers
from mempool.checkpoint.tensor_file import JOIN, TensorFile
from mempool.compress.converting import packable_layers, packed_layer, retarget
from mempool.compress.layers import Batches, not_skipped, require_module, some
from mempool.compress.left_alone import WEIGHT_SHARED, left_alone, warn_of
from mempool.compress.module_tree import ModuleTree
from mempool.compress.pruning import Pruning
from mempool.compress.replaceable import require_replaceable, require_weights_unshared
from mempool.compress.undoing import unchanged_by_errors
from mempool.compress.weight_readers import read_weights
from mempool.packed.formats import require_target
from mempool.packed.linear import Int8Linear, SparseInt8Linear, runs_on
from mempool.packed.quantizing import is_finite

_KEPT = "the checkpoint has no weight for"


@dataclass(frozen=True)
class LoadReport:
    """What ``load`` did not use or did not fill."""

    kept: tuple[str, ...]
    """Names of the model that the file has not: ``missing="keep"`` left their values."""
    unused: tuple[str, ...]
    """Names of the file that the model has no place for."""


def load(
    model: nn.Module,
    checkpoint: str | os.PathLike[str],
    weights: str | None = "int8",
    sparsity: float = 0.0,
    method: str = "magnitude",
    pattern: str = "unstructured",
    calibration: Batches | None = None,
    skip: Sequence[str] = (),
    prefix: str = "",
    target: str = "cpu",
    missing: str = "error",
) -> LoadReport:
    """Fills ``model`` in place from a safetensors file, and packs each Linear as it is read.

    The model's parameters may be on the meta device (see ``meta_parameters``): their values get new memory from the
    current pool. All other tensors are filled in place: they keep their device, their pool and their attributes, and
    stay the same objects. A packed layer is put on the device of its Linear, whose dense weight is freed once all
    layers are made. Beside the packed model, the pool never holds more than 1.3 times the largest layer as float32, and
    with ``sparsity`` 3 times. Calibration data goes through an int8 model, which is freed at the end. SparseGPT takes 8
    times the largest layer (or the square of its inputs, if that is more), and up to 1 GiB for its Hessians.

    Layers that the file has packed already (see ``save``) are loaded as they are; the others become what ``convert``
    makes of them after ``prune_`` with these arguments. Methods that calibrate send the data through the int8 model,
    and read the file a second time. ``weights=None`` packs no further layer. ``skip``: names of layers, or patterns,
    that stay as they are: a weight that the file has packed is unpacked for such a layer, to float32, and cast to the
    model's type. ``prefix``: a prefix of the file's names that the model's names lack. ``target``: as for ``convert``,
    but layers that the file has packed stay as they are. A warning names the layers that stay dense, as that of
    ``convert`` does.

    Every parameter and persistent buffer comes from the file. ``missing="keep"``: tensors that the file lacks keep
    their values, and a Linear whose weight it lacks stays unpacked (a new head on a known encoder); a file that has no
    tensor of the model is an error. Float types are cast to the model's; other types are not cast.

    Names, shapes, types and the checksums of ``save`` are verified first, and after an error the model is as it was.
    Raises ValueError where the file is not safetensors, lacks a tensor, has one that is damaged or of another shape or
    type, where a weight cannot be packed, or where the model's code is seen to read the weight of a packed layer;
    OSError where the file cannot be read; TypeError where ``path`` is no path.
    """
    _validate(model, weights, prefix, target, missing)
    pruning = Pruning(sparsity, method, pattern, calibration) if sparsity else None
    if pruning and weights is None:
        raise ValueError("sparsity goes with weights='int8': prune_() prunes a model that is loaded.")
    file = TensorFile(checkpoint, prefix)
    skipped = {id(module) for module in model.modules()} - {id(module) for module in not_skipped(model, skip).values()}
    linears, read = ({}, set()) if weights is None else packable_layers(model, skip)
    reasons = {} if weights is None else left_alone(model, linears, read, skip)
    plan = _Plan(model, file, linears, skipped, keep=missing == "keep")
    file.verify()
    plan.check()
    if weights is not None:
        warn_of(model, plan.left_alone(reasons), plan.is_any_packed(), by="load")
    if pruning is None or not pruning.method.needs_calibration:
        plan.make()
        plan.pack(target, pruning)
        plan.commit()
    else:
        plan.make()
        plan.pack("cpu")  # calibration data goes through the packed layers
        with unchanged_by_errors(model, plan.real):
            plan.commit()
            plan.prune(pruning, target)
    return LoadReport(tuple(plan.kept), file.unused())


def _validate(model: nn.Module, weights: str | None, prefix: str, target: str, missing: str) -> None:
    require_module("model", model)
    if not isinstance(prefix, str):
        raise TypeError(f"prefix is what names of the file begin with, not {prefix!r}.")
    if weights not in ("int8", None):
        raise ValueError(f"weights can be 'int8' or None, not {weights!r}.")
    if missing not in ("error", "keep"):
        raise ValueError(f"missing can be 'error' or 'keep', not {missing!r}.")
    require_target(target)
    if weights is None and target != "cpu":
        raise ValueError(f"target={target!r} goes with weights='int8': convert() packs a model that is loaded.")
    if isinstance(model, (nn.Linear, Int8Linear, SparseInt8Linear)):
        raise ValueError("load fills a model that has layers: put this one into a torch.nn.Sequential.")


@dataclass
class _Linear:
    """A Linear that is to be packed, and the names of its tensors in the file."""

    name: str
    layer: nn.Linear
    weight: str
    bias: str | None  # None: it has none, or the model's own stays

    @property
    def shape(self) -> tuple[int, int]:
        return self.layer.out_features, self.layer.in_features

    @property
    def device(self) -> torch.device:
        weight: Tensor = self.layer.weight
        return torch.device("cpu") if weight.is_meta else weight.device


class _Plan:
    """Which tensor of the model comes from which of the file. Only ``commit`` changes the model, and it cannot fail."""

    def __init__(
        self, model: nn.Module, file: TensorFile, linears: dict[str, nn.Linear], skipped: set[int], keep: bool
    ) -> None:
        """``skipped``: the ids of modules that stay as they are. Raises ValueError where the file does not fit."""
        self._model = model
        self._file = file
        self._keep = keep
        self._new: list[tuple[nn.Module, nn.Module]] = []
        self._dense = _without_weight()  # holds what is packed next
        self._absent: list[Shared] = []
        self._left: dict[str, list[str]] = {}
        self._stored = stored_layers(model, file, keep, skipped)
        self._tensors = tensors_of(model)
        taken = {id(stored.old) for stored in self._stored}
        taken |= self._packed_that_stay(taken)
        self._linears = self._to_pack({name: layer for name, layer in linears.items() if id(layer) not in taken})
        taken |= {id(linear.layer) for linear in self._linears.values()}
        self._require_replaceable()
        self._filling = Filling(file)
        for shared in self._tensors:
            if any(id(place.module) not in taken for place in shared.places):
                self._filling.ask(shared)
        self._filling.require_apart()
        self.kept = self._require_complete([*self._filling.missing, *self._absent])

    def _require_replaceable(self) -> None:
        """Raises ValueError for a Linear that cannot be replaced, with its name as ``skip`` takes it."""
        first = {id(module): name for name, module in self._model.named_modules()}
        stored = {first[id(layer.old)]: layer.old for layer in self._stored if isinstance(layer.old, nn.Linear)}
        if read := sorted(read_weights(self._model, stored)):
            raise ValueError(
                f"the checkpoint has packed what the model's code reads the weight of, which a packed layer has not: "
                f"{some(read)}. skip=[{', '.join(map(repr, read[:5]))}{', …' if len(read) > 5 else ''}] unpacks them."
            )
        replaced = {**stored, **{name: linear.layer for name, linear in self._linears.items()}}
        require_replaceable(self._model, replaced)
        require_weights_unshared(self._model, replaced)

    def _packed_that_stay(self, stored: set[int]) -> set[int]:
        """The ids of the model's packed layers for which the file has no tensor."""
        names: dict[int, str] = {}
        for name, module in self._model.named_modules():
            if isinstance(module, (Int8Linear, SparseInt8Linear)) and id(module) not in stored:
                if not self._keep or any(self._file.has(f"{name}.{part}") for part in ("weight", "bias")):
                    raise ValueError(
                        f"layer {name!r} of the model is packed, and the checkpoint has no packed layer for it."
                    )
                names[id(module)] = name
        self._absent += [shared for shared in self._tensors if id(shared.places[0].module) in names]
        return set(names)

    def _to_pack(self, linears: dict[str, nn.Linear]) -> dict[str, _Linear]:
        """The Linears whose weight the file has, unless another module of the model has it, too."""
        shared_by = {id(place.tensor): shared for shared in self._tensors for place in shared.places}
        found: dict[str, _Linear] = {}
        for name, layer in linears.items():
            shared = shared_by.get(id(layer.weight))
            if shared is not None and len(shared.places) > 1:
                self._left.setdefault(WEIGHT_SHARED, []).append(name)
                continue
            weight = self._file.find([f"{name}.weight", *(shared.names if shared is not None else [])])
            if weight is None:
                self._left.setdefault(_KEPT, []).append(name)
                continue
            bias = None
            if layer.bias is not None:
                own = [shared_by[id(part)] for part in _parts_of_bias(layer)]
                bias = self._file.find([f"{name}.bias", *own[0].names])
                self._absent += own if bias is None else []
            found[name] = linear = _Linear(name, layer, weight, bias)
            _require_float(name, self._file.read(weight), torch.Size(linear.shape), weight)
            if bias is not None:
                _require_float(name, self._file.read(bias), torch.Size(linear.shape[:1]), bias)
        return found

    def _require_complete(self, absent: list[Shared]) -> list[str]:
        """The names whose values the model keeps; raises ValueError for a name that it cannot or may not keep."""
        for shared in absent:
            if not shared.is_saved:
                raise ValueError(
                    f"the checkpoint has no {shared.names[0]!r}, a buffer that the model makes itself: build the model "
                    "with meta_parameters() instead of torch.device('meta')."
                )
        is_kept = self._keep and self._file.is_used
        if lost := [shared.names[0] for shared in absent if not is_kept or shared.tensor.is_meta]:
            names = [name for shared in self._tensors for name in shared.names]
            raise ValueError(_missing_message(lost, names, self._file, self._keep))
        kept = {name for shared in absent for name in shared.names}
        kept |= {name for stored in self._stored for name in stored.kept}
        return [name for shared in self._tensors for name in shared.names if name in kept]

    def left_alone(self, reasons: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """The layers that stay dense, by the reason. ``reasons``: those that are known without the file."""
        packed = {id(stored.old) for stored in self._stored}
        modules = dict(self._model.named_modules())
        left: dict[str, list[str]] = {}
        for known in (reasons, self._left):
            for reason, names in known.items():
                if others := [name for name in names if id(modules.get(name)) not in packed]:
                    left.setdefault(reason, []).extend(others)
        if self.is_any_packed():
            left.pop(_KEPT, None)  # the report says that
        return left

    def is_any_packed(self) -> bool:
        """Whether the loaded model has a packed layer."""
        is_packed = (isinstance(module, (Int8Linear, SparseInt8Linear)) for module in self._model.modules())
        return bool(self._linears or self._stored) or any(is_packed)

    def check(self) -> None:
        """Raises ValueError where a packed layer of the file is not sound."""
        for stored in self._stored:
            stored.check()

    def make(self) -> None:
        """Allocates and fills all tensors and packed layers that are copied from the file."""
        self._filling.make()
        for stored in self._stored:
            stored.make()

    def pack(self, target: str, pruning: Pruning | None = None) -> None:
        """Makes the packed layers. ``pruning``: None, or a method that needs no data."""
        if pruning is None:
            for linear in self._linears.values():
                self._new.append((linear.layer, self._packed(linear, target)))
        else:
            for linear, packed in self._pruned(pruning, target):
                self._new.append((linear.layer, packed))

    def commit(self) -> None:
        tree = ModuleTree(self._model)
        for old, new in self._new:
            tree.replace(old, new)
        self._new.clear()
        for stored in self._stored:
            if (layer := stored.commit()) is not stored.old:
                tree.replace(stored.old, layer)
        self._filling.commit()

    def real(self) -> Iterator[Tensor]:
        """The tensors that ``commit`` fills in place."""
        yield from self._filling.real()
        for stored in self._stored:
            yield from stored.real()

    def prune(self, pruning: Pruning, target: str) -> None:
        """Prunes the layers that were packed, by calibration data that goes through the model: after ``commit``."""
        tree = ModuleTree(self._model)
        for_gpu = {stored.name: self._model.get_submodule(stored.name) for stored in self._stored}
        for_gpu = {name: layer for name, layer in for_gpu.items() if not runs_on(layer, "cpu")}
        retarget(tree, list(for_gpu), "cpu")
        for linear, packed in self._pruned(pruning, "cpu"):
            packed.stand_for(linear.layer.weight.dtype)
            tree.replace(self._model.get_submodule(linear.name), packed)
        sparse = [name for name in self._linears if isinstance(self._model.get_submodule(name), SparseInt8Linear)]
        retarget(tree, sparse, target)
        for name, layer in for_gpu.items():
            tree.replace(self._model.get_submodule(name), layer)

    def _pruned(self, pruning: Pruning, target: str) -> Iterator[tuple[_Linear, Int8Linear | SparseInt8Linear]]:
        def weight_of(name: str) -> Tensor:
            linear = self._linears[name]
            device = linear.device if pruning.method.needs_calibration else None  # where the data is
            weight = self._file.read(linear.weight).to(device, torch.float32, copy=True)
            _require_finite(name, weight)
            return weight

        shapes = {name: linear.shape for name, linear in self._linears.items()}
        for name, weight, mask in pruning.run(self._model, shapes, weight_of):
            packed = self._packed(self._linears[name], target, weight.mul_(mask).cpu())
            del weight, mask  # before the next ones come
            yield self._linears[name], packed

    def _packed(self, linear: _Linear, target: str, weight: Tensor | None = None) -> Int8Linear | SparseInt8Linear:
        """The packed layer for the place of a Linear, on its device, from the file's weight or from the given one."""
        dense = self._dense
        dense.out_features, dense.in_features = linear.shape
        if weight is None:
            weight = self._file.read(linear.weight).float()
        bias = None
        if linear.bias is not None:
            bias = self._file.read(linear.bias)
        elif linear.layer.bias is not None:
            bias = functools.reduce(torch.mul, _parts_of_bias(linear.layer)).detach().cpu()
        for name, part in (("weight", weight), ("bias", bias)):
            dense._parameters[name] = None if part is None else nn.Parameter(part, requires_grad=False)
        dense.training = linear.layer.training
        del weight, bias, part
        try:
            packed = packed_layer(linear.name, dense, target=target)
        finally:
            dense._parameters.clear()  # before the next one comes
        assert isinstance(packed, (Int8Linear, SparseInt8Linear))
        return packed if linear.device.type == "cpu" else packed.to(linear.device)


def _without_weight() -> nn.Linear:
    """A Linear without a weight: a new one would draw random numbers for it."""
    linear = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(linear)
    return linear


def _missing_message(lost: list[str], names: list[str], file: TensorFile, keep: bool) -> str:
    """The message about names that the file lacks. ``names``: all names of the model."""
    text = f"the checkpoint has no {some(map(repr, lost))}"
    if re.search(r"-\d+-of-\d+\.", file.path.name) and (file.names or not file.keys):
        return f"{text}, and is one shard of several: {JOIN}"
    if not file.is_used:
        return f"{text}: {prefixes.advice(file.keys, names, file.prefix)}"
    if keep:
        return f"{text}, and on the meta device the model has no values to keep: build these modules with memory."
    return f"{text}: missing='keep' leaves what the model has there; prefix is what the file's names begin with."


def _parts_of_bias(layer: nn.Linear) -> list[Tensor]:
    """The tensors that make a layer's bias: itself, or those that torch.nn.utils.prune keeps in its place."""
    parts = [layer._parameters.get("bias"), layer._parameters.get("bias_orig"), layer._buffers.get("bias_mask")]
    return [part for part in parts if part is not None]


def _require_float(name: str, stored: Tensor, shape: torch.Size, of: str) -> None:
    require_shape(of, stored, shape)
    if stored.dtype not in FLOATS:
        raise ValueError(f"layer {name!r}: {of!r} in the checkpoint is {stored.dtype}, quantized already.")


def _require_finite(name: str, weight: Tensor) -> None:
    if not is_finite(weight):
        raise ValueError(f"layer {name!r}: `weight` has a NaN or an infinite value.")
