"""Fills parameters and buffers of a model from a file: finds them there, checks shapes and types, copies values."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mempool.checkpoint.tensor_file import TensorFile
from mempool.compress.sharing import in_place_of, memory_of, overlap, repeats, write

# Types between which values are cast without a scale and without losing a part, from the narrowest to the widest.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CHUNK = 1 << 20  # elements


@dataclass
class Place:
    """Where a module holds a tensor."""

    module: nn.Module
    key: str

    @property
    def held(self) -> dict[str, Tensor | None]:
        in_parameters = self.key in self.module._parameters
        return self.module._parameters if in_parameters else self.module._buffers  # type: ignore[return-value]

    @property
    def tensor(self) -> Tensor:
        tensor = self.held[self.key]
        assert tensor is not None
        return tensor

    @property
    def is_saved(self) -> bool:
        return self.key not in self.module._non_persistent_buffers_set


@dataclass
class Shared:
    """A tensor of a model, or several that are the same memory: all names and all places that hold it."""

    names: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    @property
    def tensor(self) -> Tensor:
        return self.places[0].tensor

    @property
    def is_saved(self) -> bool:
        return any(place.is_saved for place in self.places)


def tensors_of(model: nn.Module) -> list[Shared]:
    """All parameters and buffers, in the order of the model."""
    found: dict[Hashable, Shared] = {}
    seen: set[tuple[int, str]] = set()
    for module_name, module in model.named_modules(remove_duplicate=False):
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is None:
                    continue
                name = f"{module_name}.{key}" if module_name else key
                if is_lazy(tensor):
                    raise ValueError(f"{name!r} of the model has no shape yet: run the model once before load.")
                shared = found.setdefault(memory_of(tensor) if tensor.numel() else id(tensor), Shared())
                shared.names.append(name)
                if (id(module), key) not in seen:
                    seen.add((id(module), key))
                    shared.places.append(Place(module, key))
    return list(found.values())


def require_type(name: str, stored: Tensor, dtype: torch.dtype) -> None:
    """Raises ValueError unless a stored tensor can be cast to this type: no float may leave the type's range."""
    if stored.dtype == dtype:
        return
    if stored.dtype not in FLOATS or dtype not in FLOATS:
        raise ValueError(
            f"{name!r} is {stored.dtype} in the checkpoint, and {dtype} in the model: only float types are cast; give "
            f"the model the type of the file, or write the file anew."
        )
    if torch.finfo(stored.dtype).max > torch.finfo(dtype).max:
        for part in torch.split(stored.reshape(-1), _CHUNK):
            if bool((part.to(dtype).isinf() & part.isfinite()).any()):
                raise ValueError(
                    f"{name!r} has values in the checkpoint that {dtype} of the model does not reach: load it as "
                    f"{stored.dtype}."
                )


def require_shape(name: str, stored: Tensor, shape: torch.Size) -> None:
    if stored.shape != shape:
        raise ValueError(f"{name!r} is {tuple(stored.shape)} in the checkpoint, and {tuple(shape)} in the model.")


class Filling:
    """The tensors of a model that are copied from a file, not packed; nothing changes before ``commit``."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self._wanted: list[tuple[Shared, str]] = []
        self.missing: list[Shared] = []
        self._new: list[tuple[Place, Tensor]] = []

    def ask(self, shared: Shared) -> None:
        """Notes which name of the file a tensor is copied from; raises ValueError for another shape or type."""
        name = self._file.find(shared.names)
        if name is None:
            if shared.is_saved or shared.tensor.is_meta:
                self.missing.append(shared)
            return
        if not shared.is_saved and not shared.tensor.is_meta:
            return  # the model makes it itself
        old, stored = shared.tensor, self._file.read(name)
        if old.layout is not torch.strided or old.is_quantized:
            raise ValueError(f"{name!r} of the model is sparse or quantized, and the file's tensors are neither.")
        require_shape(name, stored, old.shape)
        require_type(name, stored, old.dtype)
        for other in shared.names:
            if other != name and self._file.has(other):
                self._require_same(name, stored, other)
        self._wanted.append((shared, name))

    def _require_same(self, name: str, stored: Tensor, other: str) -> None:
        tensor = self._file.read(other)
        require_type(other, tensor, stored.dtype)
        if tensor.shape != stored.shape or not _same_bytes(stored, tensor.to(stored.dtype)):
            raise ValueError(
                f"{name!r} and {other!r} are one tensor in the model, and in the checkpoint two that differ: untie "
                "them in the model."
            )

    def require_apart(self) -> None:
        """Raises ValueError where filling a tensor would change another one."""
        if (found := overlap((name, shared.tensor) for shared, name in self._wanted)) is not None:
            raise ValueError(
                f"{found[0]!r} and {found[1]!r} of the model overlap in memory and are not the same tensor: give one "
                "memory of its own, as by .data = .data.clone()."
            )

    def make(self) -> None:
        """Allocates and fills new tensors in the place of those on the meta device and of those that are read-only."""
        for shared, name in self._wanted:
            if not _is_new(shared.tensor):
                continue
            old = shared.tensor.detach().as_subclass(Tensor)
            values = torch.empty_like(old, device="cpu" if old.is_meta else old.device)
            values.copy_(self._file.read(name))
            made: dict[int, Tensor] = {}  # by the id of the tensor that each replaces: one object stays one
            for place in shared.places:
                if id(place.tensor) not in made:
                    # Several objects on the same memory stay several objects.
                    made[id(place.tensor)] = in_place_of(place.tensor, values.detach())
                self._new.append((place, made[id(place.tensor)]))

    def real(self) -> Iterator[Tensor]:
        """The tensors that are filled in place."""
        return (shared.tensor for shared, _ in self._wanted if not _is_new(shared.tensor))

    def commit(self) -> None:
        for shared, name in self._wanted:
            if not _is_new(shared.tensor):
                write(shared.tensor, self._file.read(name))
        for place, tensor in self._new:
            place.held[place.key] = tensor


def _is_new(tensor: Tensor) -> bool:
    return tensor.is_meta or repeats(tensor)


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    return a.numel() == 0 or torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
