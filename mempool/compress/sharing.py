"""Tensors that share memory: tells which are the same elements, and which overlap without being the same."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


def memory_of(tensor: Tensor) -> Hashable:
    """A key that is equal for tensors of the same elements of the same storage, also on the meta device."""
    try:
        storage = tensor.untyped_storage()._cdata
        return storage, tensor.storage_offset(), tensor.dtype, tuple(tensor.shape), tensor.stride()
    except (NotImplementedError, RuntimeError):  # a tensor without storage: a sparse one, for one
        return id(tensor)


def overlap(tensors: Iterable[tuple[str, Tensor]]) -> tuple[str, str] | None:
    """The names of two tensors that have elements in common. No two of the given tensors are the same elements."""
    by_storage: dict[int, list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors:
        if tensor.numel() and tensor.layout is torch.strided and not tensor.is_meta:
            by_storage.setdefault(tensor.untyped_storage()._cdata, []).append((name, tensor))
    for sharing in by_storage.values():
        if len(sharing) > 1 and (found := _overlap_in_storage(sharing)) is not None:
            return found
    return None


def _overlap_in_storage(sharing: list[tuple[str, Tensor]]) -> tuple[str, str] | None:
    spans = sorted((*_span(tensor), name) for name, tensor in sharing)
    if all(end <= start for (_, end, _), (start, _, _) in pairwise(spans)):
        return None
    # Columns of one matrix interleave without common elements: so elements are compared, of whatever size.
    unit = min(tensor.element_size() for _, tensor in sharing)
    first, end = spans[0][0], max(end for _, end, _ in spans)
    owner = torch.full(((end - first) // unit,), -1, dtype=torch.int32, device="cpu")
    for index, (name, tensor) in enumerate(sharing):
        width = tensor.element_size() // unit
        sizes = [1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        strides = [stride * width for stride in tensor.stride()]
        view = owner.as_strided([*sizes, width], [*strides, 1], (_span(tensor)[0] - first) // unit)
        if (taken := int(view.max())) >= 0:
            return sharing[taken][0], name
        view.fill_(index)
    return None


def _span(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor in its storage, and its end."""
    start = int(tensor.storage_offset()) * tensor.element_size()
    last: int = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def repeats(tensor: Tensor) -> bool:
    """Whether several elements of a tensor share memory, as after ``expand``: nothing can be copied into it."""
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def in_place_of(old: Tensor, values: Tensor) -> Tensor:
    """A tensor with these values for the place of ``old`` in a module: it gets its class, gradient and attributes."""
    new = values
    if isinstance(old, nn.Parameter):
        new = torch.Tensor._make_subclass(type(old), values, old.requires_grad)
    attributes: dict[str, Any] = old.__dict__
    new.__dict__.update(attributes)
    return new


def write(tensor: Tensor, values: Tensor) -> None:
    """Copies values into a tensor, also into one that was made in inference mode."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(values)
