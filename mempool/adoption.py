"""``adopt``: tensors that were made elsewhere move into a pool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mempool._device import KINDS, allocator, kind_of, parse_device
from mempool._device_kind import DeviceKind
from mempool.errors import ConfigError, PoolAsleepError
from mempool.pools import MemoryPool
from mempool.scopes import use_pool


@dataclass(frozen=True)
class AdoptReport:
    """What :func:`adopt` did."""

    tensors: int  # that are in the pool now
    moved_bytes: int  # copied into new storages
    kept_elsewhere_bytes: int  # of old storages that are still referred to: by a view, its base, a numpy array
    already_there_bytes: int = 0  # of storages that were in the pool before, and stay as they are


def adopt(source: nn.Module | Tensor | Iterable[Tensor] | Mapping[Any, Tensor], pool: MemoryPool) -> AdoptReport:
    """Moves tensors into a pool, by a copy: the parameters and buffers of a module, a tensor, or several.

    For tensors that ``with use_pool(pool):`` does not reach: transformers loads weights on threads of its own,
    safetensors maps files. Tensors and parameters stay the same objects, and those that share memory (tied parameters,
    views) still share it afterwards. What is in the pool already (not in a child of it) stays where it is, so that
    adopting it again costs nothing. One storage at a time is in memory twice. A view or an array that is not among the
    tensors given keeps the old memory, which the report counts.

    Raises:
        ConfigError: `pool` is no pool; `source` is no module and no tensors; or a tensor is on another device than the
            pool, is sparse, quantized or of another kind without a plain storage. Nothing has moved then.
        OutOfMemoryError: the pool's limit or the device's refuses a storage; those before it have moved, and all values
            are what they were.
        NotEnabledError: mempool is not enabled for the pool's device.
        PoolClosedError: the pool is closed.
        PoolAsleepError: the pool is asleep.
    """
    if not isinstance(pool, MemoryPool):
        raise ConfigError(f"adopt wants a MemoryPool, not {pool!r}.")
    if pool.asleep:
        raise PoolAsleepError(f"pool {pool.name!r} is asleep: wake() it before it takes tensors.")
    groups: dict[int, list[Tensor]] = {}
    for name, tensor in _tensors_of(source):
        _require_plain(name, tensor, pool)
        if tensor.device.type != "meta":
            groups.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)
    kind = kind_of(pool.device)
    moved = kept = already_there = 0
    with use_pool(pool):
        for group in groups.values():
            storage = group[0].untyped_storage()
            if pool._handle.is_charged(storage.data_ptr()):
                already_there += storage.nbytes()
                continue
            size, left = _move(group, kind)
            moved += size
            kept += left
    return AdoptReport(sum(map(len, groups.values())), moved, kept, already_there)


def _tensors_of(source: Any) -> list[tuple[str, Tensor]]:
    """Each tensor once, with a name for messages."""
    if isinstance(source, nn.Module):
        named = [*source.named_parameters(), *source.named_buffers()]
    elif isinstance(source, Tensor):
        named = [("the tensor", source)]
    elif isinstance(source, Mapping):
        named = [(str(name), tensor) for name, tensor in source.items()]
    elif isinstance(source, Iterable) and not isinstance(source, (str, bytes)):
        named = [(f"tensor {i}", tensor) for i, tensor in enumerate(source)]
    else:
        raise ConfigError(f"adopt wants a module, a tensor or several tensors, not {source!r}.")
    seen: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in named:
        if not isinstance(tensor, Tensor):
            raise ConfigError(f"adopt: {name} is a {type(tensor).__name__}, not a tensor.")
        seen.setdefault(id(tensor), (name, tensor))
    return list(seen.values())


def _require_plain(name: str, tensor: Tensor, pool: MemoryPool) -> None:
    if tensor.device.type == "meta" and not is_lazy(tensor):
        return  # it has no memory to move
    kind = None
    if is_lazy(tensor):
        kind = "lazy and has no shape yet"
    elif tensor.is_nested:
        kind = "a nested tensor"
    elif tensor.layout != torch.strided:
        kind = str(tensor.layout)
    elif tensor.is_quantized:
        kind = "quantized"
    elif is_traceable_wrapper_subclass(tensor):
        kind = f"a {type(tensor).__name__}"
    elif tensor.is_conj() or tensor.is_neg() or tensor._is_zerotensor():
        kind = "a conjugate, negative or zero view"
    elif _extent(tensor)[1] > tensor.untyped_storage().nbytes():
        kind = "without its memory, which was resized"
    if kind is not None:
        raise ConfigError(
            f"adopt: {name} is {kind}, which has no storage that holds its values. Make it a dense tensor."
        )
    where = _home_of(tensor)
    if where != pool.device:
        raise ConfigError(f"adopt: {name} is on {where}, and pool {pool.name!r} is of {pool.device}.")


def _home_of(tensor: Tensor) -> str:
    """The device of mempool's that a tensor's memory is of; torch's name for one that mempool has not."""
    if tensor.device.type == "cpu" and tensor.is_pinned():
        return "pinned"
    return allocator(parse_device(tensor.device)).name if tensor.device.type in KINDS else str(tensor.device)


_ALIGNMENT = 64  # of a block: a multiple of every element's size


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The range of bytes of its storage that a tensor covers: [first, end)."""
    first = int(tensor.storage_offset()) * tensor.element_size()
    if tensor.numel() == 0:
        return first, first
    span = 1 + sum((length - 1) * int(stride) for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + span * tensor.element_size()


def _move(group: list[Tensor], kind: DeviceKind) -> tuple[int, int]:
    """Moves the tensors of one storage into a new storage of the current pool.

    Returns:
        The bytes of the new storage, and those of the old one where it is still referred to.
    """
    storage = group[0].untyped_storage()
    extents = [_extent(tensor) for tensor in group if tensor.numel() > 0]
    # Views of a large storage take along what they cover; each is aligned as it was.
    first = min((extent[0] for extent in extents), default=0) // _ALIGNMENT * _ALIGNMENT
    last = max((extent[1] for extent in extents), default=0)
    new = kind.empty(last - first, group[0].device).untyped_storage()
    old = torch.empty(0, dtype=torch.uint8, device=group[0].device).set_(storage, first, (last - first,), (1,))
    torch.empty(0, dtype=torch.uint8, device=group[0].device).set_(new, 0, (last - first,), (1,)).copy_(old)
    del old
    for tensor in group:
        # Exchanged in inference mode, a weight would be an inference tensor afterwards, and never have a gradient.
        with torch.inference_mode(tensor.is_inference()):
            _exchange(tensor, new, first)
    # One reference is the variable above.
    kept = storage.nbytes() if torch._C._storage_Use_Count(storage._cdata) > 1 else 0
    return last - first, kept


def _exchange(tensor: Tensor, new: torch.UntypedStorage, first: int) -> None:
    """`first`: the byte of the tensor's storage that the new one begins with."""
    offset = max(0, tensor.storage_offset() - first // tensor.element_size()) if tensor.numel() else 0
    shape, stride = tensor.shape, tensor.stride()
    tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(new, offset, shape, stride)
