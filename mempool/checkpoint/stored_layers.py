"""Loads layers that a file has packed already: finds them by their names, checks them, and puts them into a model."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mempool.checkpoint.filling import require_type
from mempool.checkpoint.tensor_file import TensorFile
from mempool.compress.sharing import write
from mempool.packed.linear import Int8Linear, SparseInt8Linear, class_for

Packed = Int8Linear | SparseInt8Linear
Alike = dict[tuple[type[Packed], int, int, bool], Packed]  # on the meta device


class StoredLayer:
    """A packed layer of a file, with its buffers still on the file's mapping, and the model's layer that it is for."""

    def __init__(
        self, file: TensorFile, name: str, layer: nn.Module, names: list[str], keep: bool, alike: Alike
    ) -> None:
        """``names``: the file's names that begin with the layer's. ``keep``: a bias that the file lacks is the model's.
        ``alike``: layers made before, by their shapes.

        Raises ValueError where the stored layer does not fit the model's.
        """
        if not isinstance(layer, Packed) and type(layer) is not nn.Linear:
            advice = f" skip=[{name!r}] unpacks it." if isinstance(layer, nn.Linear) else ""
            raise ValueError(
                f"the checkpoint has a packed layer {name!r}, and the model a {type(layer).__name__} there: it takes "
                f"the place of a torch.nn.Linear.{advice}"
            )
        self.name = name
        self.old: nn.Linear | Packed = layer
        state = _state_of(file, name, names)
        self.kept: list[str] = []
        if "bias" not in state and layer.bias is not None:
            if not keep or layer.bias.is_meta:
                raise ValueError(f"the checkpoint has no '{name}.bias'.")
            require_type(f"{name}.bias", layer.bias, torch.float32)
            state["bias"] = layer.bias.detach().float().cpu()
            self.kept.append(f"{name}.bias")
        if "bias" in state and layer.bias is None:
            raise ValueError(f"the checkpoint has '{name}.bias', and the model's layer has none.")
        kind: type[Packed] = type(layer) if isinstance(layer, Packed) else class_for(state["format"])
        shape = kind, layer.in_features, layer.out_features, "bias" in state
        if shape not in alike:
            alike[shape] = kind(*shape[1:], device="meta")
        self._checked = _copied(alike[shape])
        self._state = state
        self._made: dict[str, Tensor | None] = {}

    def check(self) -> None:
        """Raises ValueError where the buffers are not sound, or have another shape than the model's layer."""
        _assign(self.name, self._checked, self._state)

    def make(self) -> None:
        """Allocates the buffers that cannot be filled in place, on the device of the model's layer, if it has one."""
        old = self.old
        weight = old.get_buffer("sums") if isinstance(old, Packed) else old.weight
        device = torch.device("cpu") if weight.is_meta else weight.device
        for key, stored in self._checked._buffers.items():
            if stored is not None and not self._fits(key, stored):
                self._made[key] = torch.empty(stored.shape, dtype=stored.dtype, device=device).copy_(stored)

    def _fits(self, key: str, stored: Tensor) -> bool:
        own = self.old._buffers.get(key) if isinstance(self.old, Packed) else None
        return own is not None and not own.is_meta and own.shape == stored.shape and own.dtype == stored.dtype

    def real(self) -> list[Tensor]:
        """The buffers that are filled in place."""
        fitting = [self.old._buffers[key] for key, stored in self._checked._buffers.items() if self._is_filled(key)]
        return [tensor for tensor in fitting if tensor is not None]

    def _is_filled(self, key: str) -> bool:
        stored = self._checked._buffers[key]
        return stored is not None and self._fits(key, stored)

    def commit(self) -> Packed:
        """The layer for the model: its own, if that was packed, with its buffers filled or replaced; else a new one."""
        new = self._checked
        own = self.old._buffers if isinstance(self.old, Packed) else {}
        buffers: dict[str, Tensor | None] = {}
        for key, stored in new._buffers.items():
            if self._is_filled(key):
                assert stored is not None
                buffers[key] = own[key]
                write(buffers[key], stored)  # type: ignore[arg-type]
            else:
                buffers[key] = self._made.get(key)
        layer = self.old if isinstance(self.old, Packed) else new
        layer.name_in_model = self.name or None
        layer._buffers.clear()
        layer._buffers.update(buffers)
        layer.pattern = new.pattern
        layer.stand_for(layer.placeholder.dtype)  # on the device of what it has now
        return layer if layer is self.old else layer.train(self.old.training)


def _state_of(file: TensorFile, name: str, names: list[str]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}." if name else ""): file.read(key) for key in names}


def _copied(layer: Packed) -> Packed:
    """A copy of a layer, sharing its buffers: most layers of a model are alike, and building one takes long."""
    new = copy.copy(layer)
    for name, value in vars(new).items():
        if isinstance(value, dict):
            vars(new)[name] = value.copy()
    return new


def _assign(name: str, layer: Packed, state: Mapping[str, Tensor]) -> None:
    """Loads a state by assignment. Raises ValueError unless it is sound and of the layer's shape."""
    try:
        layer.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"layer {name!r} of the checkpoint: {error}") from error


def stored_layers(model: nn.Module, file: TensorFile, keep: bool, dense: set[int]) -> list[StoredLayer]:
    """The packed layers of the file that the model has a layer for, each once. Others are not read.

    ``dense``: the ids of modules that stay as they are. For a Linear among them ``file`` offers a dense weight from now
    on, which is unpacked each time that it is read.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    by_layer: dict[str, list[str]] = {}
    for name in file.names:
        by_layer.setdefault(name.rpartition(".")[0], []).append(name)
    found: dict[int, StoredLayer] = {}
    alike: Alike = {}
    for name, names in by_layer.items():
        module = modules.get(name)
        header = f"{name}.format" if name else "format"
        if header not in names or module is None or id(module) in found:
            continue
        own_format = "format" in module._parameters or "format" in module._buffers
        if own_format and not isinstance(module, Packed):
            continue  # a module of the user's that calls a tensor of its own so
        if isinstance(module, nn.Linear) and id(module) in dense:
            parts = [key for key in names if key.rpartition(".")[2] != "bias"]
            file.make(f"{name}.weight", functools.partial(_unpacked, file, name, module, parts))
        else:
            found[id(module)] = StoredLayer(file, name, module, names, keep, alike)
    return list(found.values())


def _unpacked(file: TensorFile, name: str, layer: nn.Linear, names: list[str]) -> Tensor:
    """The weight of a packed layer of the file, float32 [N, K]. Raises ValueError if it is damaged or does not fit."""
    state = _state_of(file, name, names)
    packed = class_for(state["format"])(layer.in_features, layer.out_features, bias=False, device="meta")
    _assign(name, packed, state)
    return packed.dequantize()
