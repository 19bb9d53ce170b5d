"""Models from safetensors files, packed while they are read: the dense model is never in memory as a whole."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, KeysView, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mempool.compress.converting import packed_layer, retarget
from mempool.compress.layers import Batches, linear_layers
from mempool.compress.module_tree import ModuleTree
from mempool.compress.pruning import Pruning
from mempool.compress.replaceable import require_replaceable
from mempool.nn import Int8Linear, SparseInt8Linear
from mempool.packing import require_target


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Modules that are built in it have parameters on the meta device, which take no memory; buffers are real.

    One layer's parameters are in memory while it is built. Not for several threads at once.
    """
    register = nn.Module.register_parameter
    # By what each was before, which is not kept alive by it: one that is given to two modules stays one.
    on_meta: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            known, meta = on_meta.get(id(param), (None, None))
            if meta is None or known is None or known() is not param:
                meta = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
                on_meta[id(param)] = weakref.ref(param), meta
            param = meta
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


class _File:
    """A safetensors file. Every tensor is copied out of the file's own mapping: into the current pool."""

    def __init__(self, path: Path, prefix: str) -> None:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise RuntimeError("reading a checkpoint needs a package: pip install mempool[compress]") from error
        self._file: Any
        try:
            self._file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"'{path}' is no safetensors file: {error}") from error
        keys: list[str] = list(self._file.keys())
        self._keys = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}

    def add_tied(self, model: nn.Module) -> None:
        """Parameters that the model has under several names may be in the file under one of them."""
        named: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            named.setdefault(id(parameter), []).append(name)
        for names in named.values():
            known = next((name for name in names if name in self._keys), None)
            for name in names if known is not None else ():
                if f"{name.rpartition('.')[0]}.format" not in self._keys:  # of a layer that the file has packed
                    self._keys.setdefault(name, self._keys[known])  # type: ignore[index]

    @property
    def names(self) -> KeysView[str]:
        return self._keys.keys()

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(self._keys[name])
        return torch.empty_like(tensor).copy_(tensor)


def load(
    model: nn.Module,
    checkpoint: str | Path,
    weights: str | None = "int8",
    sparsity: float = 0.0,
    method: str = "magnitude",
    pattern: str = "unstructured",
    calibration: Batches | None = None,
    skip: Sequence[str] = (),
    prefix: str = "",
    target: str = "cpu",
) -> nn.Module:
    """Fills ``model`` from a safetensors file, and packs each Linear as it is read; returns the model.

    The model's parameters may be on the meta device (see ``meta_parameters``): then no more is ever in memory than
    the packed model and one dense layer, all of it in the current pool. Layers that the file has packed already (see
    ``save``) come in as they are; others become what ``convert`` makes of them after ``prune_`` with these arguments.
    Methods that calibrate send the data through the int8 model, and read the file a second time. ``weights=None``
    packs nothing. ``prefix``: what the file's names begin with and the model's do not. ``target``: as for ``convert``,
    but layers that the file has packed stay as they are.

    Raises ValueError where the file lacks a parameter, has one of another shape, or a weight cannot be packed; the
    model is half filled then. What the file has beyond the model is left alone.
    """
    if weights not in ("int8", None):
        raise ValueError(f"weights can be 'int8' or None, not {weights!r}.")
    require_target(target)
    if weights is None and target != "cpu":
        raise ValueError(f"target={target!r} goes with weights='int8': convert() packs a model that is loaded.")
    pruning = Pruning(sparsity, method, pattern, calibration) if sparsity else None
    if pruning and weights is None:
        raise ValueError("sparsity goes with weights='int8': prune_() prunes a model that is loaded.")
    if isinstance(model, (nn.Linear, Int8Linear, SparseInt8Linear)):
        raise ValueError("load fills a model that has layers: put this one into a torch.nn.Sequential.")
    file = _File(Path(checkpoint), prefix)
    file.add_tied(model)
    layers = {} if weights is None else linear_layers(model, skip)
    in_file = {name: module for name, module in model.named_modules() if f"{name}.format" in file.names}
    packed_in_file = {name: module for name, module in in_file.items() if type(module) is nn.Linear}
    require_replaceable(model, {**layers, **packed_in_file})
    tree = ModuleTree(model)
    packed = _load_packed(tree, file)
    layers = {name: layer for name, layer in layers.items() if name not in packed}
    for name, module in model.named_modules():
        if isinstance(module, (Int8Linear, SparseInt8Linear)) and name not in packed:
            raise ValueError(f"layer {name!r} of the model is packed, and the checkpoint has no packed layer for it.")
    _load_rest(model, file, {f"{name}.{part}" for name in [*layers, *packed] for part in ("weight", "bias")})

    needs_data = pruning is not None and pruning.method != "magnitude"
    # Calibration data goes through what is packed, on the CPU.
    while_packing = "cpu" if needs_data else target
    loaded_24 = [name for name in packed if needs_data and _pattern(model, name) == "2:4"]
    retarget(tree, loaded_24, "cpu")
    if pruning is None or needs_data:
        for name, layer in layers.items():
            tree.replace(model.get_submodule(name), _packed(file, name, layer, while_packing))
    if pruning is not None:
        shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
        for name, weight, mask in pruning.run(model, shapes, lambda name: _weight(file, name, shapes[name])):
            sparse = _packed(file, name, layers[name], while_packing, weight.mul_(mask))
            tree.replace(model.get_submodule(name), sparse)
    if needs_data:
        retarget(tree, [name for name in layers if _pattern(model, name) not in (None, "dense")], target)
    for name in loaded_24:
        layer_24 = model.get_submodule(name)
        assert isinstance(layer_24, SparseInt8Linear)
        tree.replace(layer_24, layer_24.repacked("2:4"))
    return model


def _pattern(model: nn.Module, name: str) -> str | None:
    layer = model.get_submodule(name)
    return layer.pattern if isinstance(layer, (Int8Linear, SparseInt8Linear)) else None


def save(model: nn.Module, checkpoint: str | Path) -> None:
    """Writes the model's parameters and buffers, packed ones as they are, for ``load``.

    Tensors that are shared are written once.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise RuntimeError("writing a checkpoint needs a package: pip install mempool[compress]") from error
    state: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in written:
            written.add(id(tensor))
            state[name] = tensor.detach().contiguous()
    save_file(state, checkpoint)


def _weight(file: _File, name: str, shape: tuple[int, int]) -> Tensor:
    weight = _read(file, f"{name}.weight", torch.Size(shape))
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"layer {name!r}: its weight in the checkpoint is {weight.dtype}, quantized already.")
    weight = weight.float()
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"layer {name!r}: its weight has a NaN or an infinite value.")
    return weight


def _packed(file: _File, name: str, layer: nn.Linear, target: str, weight: Tensor | None = None) -> nn.Module:
    """The packed layer in the place of ``layer``, from the file's weight or the given one."""
    shape = (layer.out_features, layer.in_features)
    dense = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    dense.weight = nn.Parameter(_weight(file, name, shape) if weight is None else weight, requires_grad=False)
    if layer.bias is not None:
        dense.bias = nn.Parameter(_read(file, f"{name}.bias", torch.Size(shape[:1])), requires_grad=False)
    return packed_layer(name, dense.train(layer.training), target=target)


def _read(file: _File, name: str, shape: torch.Size) -> Tensor:
    if name not in file.names:
        raise ValueError(f"the checkpoint has no {name!r}.")
    tensor = file.read(name)
    if tensor.shape != shape:
        raise ValueError(f"{name!r} is {tuple(tensor.shape)} in the checkpoint, and {tuple(shape)} in the model.")
    return tensor


def _load_packed(tree: ModuleTree, file: _File) -> set[str]:
    """Puts in the layers that the file has packed; their names."""
    names = {name.removesuffix(".format") for name in file.names if name.endswith(".format")}
    for name in names:
        try:
            layer = tree.model.get_submodule(name)
        except AttributeError:
            raise ValueError(f"the checkpoint has a packed layer {name!r}, and the model none of that name.") from None
        if f"{name}.bias" not in file.names and getattr(layer, "bias", None) is not None:
            raise ValueError(f"the checkpoint has no '{name}.bias'.")
        if f"{name}.bias" in file.names and getattr(layer, "bias", None) is None:
            raise ValueError(f"the checkpoint has '{name}.bias', and the model's layer has none.")
        state = {key.removeprefix(f"{name}."): file.read(key) for key in file.names if key.startswith(f"{name}.")}
        kind: type[Int8Linear] | type[SparseInt8Linear] = Int8Linear if "panels" in state else SparseInt8Linear
        if type(layer) is nn.Linear:
            new = kind(layer.in_features, layer.out_features, bias="bias" in state, device="meta")
            tree.replace(layer, new.train(layer.training))
        else:
            new = layer  # type: ignore[assignment]
        try:
            new.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise ValueError(f"layer {name!r} of the checkpoint: {error}") from error
    return names


def _load_rest(model: nn.Module, file: _File, packed: set[str]) -> None:
    """Every parameter that is not a packed layer's, and every buffer that the file has."""
    taken: dict[int, Tensor] = {}  # by what they replace: tied parameters stay tied
    for module_name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (Int8Linear, SparseInt8Linear)):
            continue
        where = f"{module_name}." if module_name else ""
        for own in (module._parameters, module._buffers):
            for name, old in list(own.items()):
                if old is None or where + name in packed:
                    continue
                if id(old) in taken:
                    own[name] = taken[id(old)]
                elif where + name in file.names:
                    new = _read(file, where + name, old.shape).to(old.dtype)
                    own[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                    taken[id(old)] = own[name]
    for name, parameter in model.named_parameters():
        if parameter.is_meta and name not in packed:
            raise ValueError(f"the checkpoint has no {name!r}.")
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            raise ValueError(
                f"the checkpoint has no {name!r}, a buffer that the model makes itself: build the model with "
                "meta_parameters() instead of torch.device('meta')."
            )
