"""The operators ``torch.ops.mempool.*``: packed weights that run as they are, and what packs, unpacks and checks them.

``int8_linear(input, panels, sums, scales, bias, inputs)`` and ``bitmap_linear`` and ``block4_linear(input, masks,
values, offsets, sums, scales, bias, inputs)`` take rows of float32 or bfloat16, ``[..., inputs]``, and return
``[..., outputs]`` of that type. Each row is quantized to int8 with a scale of its own; products are summed in int32,
exactly. The formats are described in ``csrc/kernels/weights.h``; all buffers are uint8, int32 and float32, contiguous,
and on one device: the CPU or, where this build has kernels for it (``HAS_CUDA``), a GPU. ``sparse24_linear(input,
values, places, sums, scales, bias, inputs)`` runs on a GPU alone; its weight has two of each four inputs that are not
zero at most (``csrc/kernels/formats/sparse24.h``).

The shapes of buffers are checked at every call. That their contents fit each other is not (nor, on a GPU, that
``values`` is as long as ``offsets`` say): run ``check_…`` once on buffers that come from elsewhere, as the modules of
``mempool.nn`` do.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mempool import _build, _core

__all__ = ["HAS_CUDA", "MOST_INPUTS", "packed_sizes"]

MOST_INPUTS = 65536  # of a layer: beyond it an int32 sum could overflow
_PANEL, _GROUP, _LANES = 64, 4, 64  # outputs, inputs, bytes of a vector: csrc/kernels/weights.h


def _up(value: int, unit: int) -> int:
    return (value + unit - 1) // unit * unit


def packed_sizes(pattern: str, outputs: int, inputs: int) -> dict[str, int]:
    """Elements of the buffers of a weight ``[outputs, inputs]`` that follow from its shape alone.

    ``pattern``: ``"dense"``, ``"unstructured"``, ``"block4"`` or ``"2:4"``. How many ``values`` one of the middle two
    has depends on the weight.
    """
    groups = _up(inputs, _GROUP) // _GROUP
    if pattern == "dense":
        return {"panels": _up(outputs, _PANEL) * groups * _GROUP}
    if pattern == "unstructured":
        return {"masks": _up(outputs, _PANEL) * groups * _GROUP // 8, "offsets": _up(outputs, _PANEL) // _PANEL + 1}
    if pattern == "2:4":
        tiles = (_up(outputs, 16) // 16) * (_up(inputs, 64) // 64)  # csrc/kernels/formats/sparse24.h
        return {"values": tiles * 512, "places": tiles * 32}
    return {"masks": outputs * _up(groups, 64) // 8, "offsets": outputs + 1}


# Beside the modules, which an editable installation keeps apart from these files.
_FOLDER = Path(_core.__file__).parent
torch.ops.load_library(str(_FOLDER / "_ops.so"))  # type: ignore[no-untyped-call]


def _load_cuda_kernels() -> str:
    """Why there are no kernels for a GPU; empty when they are loaded."""
    if _core.without_cuda_kernels:
        return f"this build has no kernels for a GPU: {_core.without_cuda_kernels}"
    try:
        torch.ops.load_library(str(_FOLDER / "_ops_cuda.so"))  # type: ignore[no-untyped-call]
    except OSError as error:  # of another build of torch, or not there any more
        return f"the library of kernels for a GPU {_build.load_problem(error)}"
    return ""


CUDA_PROBLEM = _load_cuda_kernels()
HAS_CUDA = not CUDA_PROBLEM


def _no_kernels(*_: object) -> Tensor:
    raise RuntimeError(f"mempool: {CUDA_PROBLEM}. Or move the layer to the CPU.")


if not HAS_CUDA:
    _library: Any = torch.library.Library
    _refusals = _library("mempool", "IMPL")  # kept: what it registers goes with it
    for _name in ("int8_linear", "bitmap_linear", "block4_linear", "sparse24_linear"):
        _refusals.impl(_name, _no_kernels, "CUDA")

# What each operator returns, by shape and type alone, for torch.compile and torch.export.


def _linear(input: Tensor, scales: Tensor, inputs: int) -> Tensor:
    if input.dtype not in (torch.float32, torch.bfloat16):
        raise RuntimeError(f"mempool: `input` has to be float32 or bfloat16, and is {input.dtype}.")
    if input.device != scales.device:  # it stands for the meta device, too: a weight that was never loaded
        raise RuntimeError(f"mempool: `input` is on {input.device}, and the layer's weight on {scales.device}.")
    if input.dim() < 1 or scales.dim() != 1:
        raise RuntimeError("mempool: `input` has to have a last dimension, and `scales` one dimension.")
    torch._check(input.shape[-1] == inputs)  # type: ignore[no-untyped-call]
    return input.new_empty([*input.shape[:-1], scales.shape[0]])


def _int8_linear(
    input: Tensor, panels: Tensor, sums: Tensor, scales: Tensor, bias: Tensor | None, inputs: int
) -> Tensor:
    return _linear(input, scales, inputs)


def _sparse_linear(
    input: Tensor,
    masks: Tensor,
    values: Tensor,
    offsets: Tensor,
    sums: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    inputs: int,
) -> Tensor:
    return _linear(input, scales, inputs)


def _refuse_backward(gradient: Tensor, input: Tensor) -> Tensor:
    return torch.empty_like(input)


def _quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape, dtype=torch.int8), weight.new_empty(weight.shape[0])


def _pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    outputs, inputs = weight.shape
    panels = weight.new_empty(packed_sizes("dense", outputs, inputs)["panels"], dtype=torch.uint8)
    return panels, weight.new_empty(outputs, dtype=torch.int32)


def _pack_sparse(pattern: str, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs, inputs = weight.shape
    sizes = packed_sizes(pattern, outputs, inputs)
    return (
        weight.new_empty(sizes["masks"], dtype=torch.uint8),
        weight.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8),
        weight.new_empty(sizes["offsets"], dtype=torch.int32),
        weight.new_empty(outputs, dtype=torch.int32),
    )


def _unpack_int8(panels: Tensor, outputs: int, inputs: int) -> Tensor:
    return panels.new_empty((outputs, inputs), dtype=torch.int8)


def _unpack_sparse(masks: Tensor, values: Tensor, offsets: Tensor, sums: Tensor, outputs: int, inputs: int) -> Tensor:
    return masks.new_empty((outputs, inputs), dtype=torch.int8)


def _sparse24_linear(
    input: Tensor,
    values: Tensor,
    places: Tensor,
    sums: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    inputs: int,
) -> Tensor:
    return _linear(input, scales, inputs)


def _pack_sparse24(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    outputs, inputs = weight.shape
    sizes = packed_sizes("2:4", outputs, inputs)
    return (
        weight.new_empty(sizes["values"], dtype=torch.uint8),
        weight.new_empty(sizes["places"], dtype=torch.int32),
        weight.new_empty(outputs, dtype=torch.int32),
    )


def _unpack_sparse24(values: Tensor, places: Tensor, sums: Tensor, outputs: int, inputs: int) -> Tensor:
    return values.new_empty((outputs, inputs), dtype=torch.int8)


for _name, _shapes in (
    ("int8_linear", _int8_linear),
    ("bitmap_linear", _sparse_linear),
    ("block4_linear", _sparse_linear),
    ("refuse_backward", _refuse_backward),
    ("quantize_weight", _quantize_weight),
    ("pack_int8", _pack_int8),
    ("pack_bitmap", functools.partial(_pack_sparse, "unstructured")),
    ("pack_block4", functools.partial(_pack_sparse, "block4")),
    ("unpack_int8", _unpack_int8),
    ("unpack_bitmap", _unpack_sparse),
    ("unpack_block4", _unpack_sparse),
    ("sparse24_linear", _sparse24_linear),
    ("pack_sparse24", _pack_sparse24),
    ("unpack_sparse24", _unpack_sparse24),
):
    torch.library.register_fake(f"mempool::{_name}", _shapes)
