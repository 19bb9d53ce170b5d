"""The operators ``torch.ops.mempool.*``: packed weights that run as they are, and what packs, unpacks and checks them.

``int8_linear(input, panels, sums, scales, bias=None)``, ``bitmap_linear(input, masks, values, offsets, sums, scales,
bias=None)`` and ``block4_linear(…)`` take rows of float32 or bfloat16, ``[..., K]``, and return ``[..., N]`` of the same
type. Each row is quantized to int8 with a scale of its own; products are summed in int32, exactly. The formats are
described in ``csrc/kernels/weights.h``; all buffers are uint8, int32 and float32, on the CPU, and contiguous.

The shapes of buffers are checked at every call. That their contents fit each other is not: run ``check_…`` once on
buffers that come from elsewhere, as the modules of ``mempool.nn`` do.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mempool import _core

__all__ = ["MOST_INPUTS", "packed_sizes"]

MOST_INPUTS = 65536  # of a layer: beyond it an int32 sum could overflow
_PANEL, _GROUP, _LANES = 64, 4, 64  # outputs, inputs, bytes of a vector: csrc/kernels/weights.h


def _up(value: int, unit: int) -> int:
    return (value + unit - 1) // unit * unit


def packed_sizes(pattern: str, outputs: int, inputs: int) -> dict[str, int]:
    """Elements of the buffers of a weight ``[outputs, inputs]`` that follow from its shape alone.

    ``pattern``: ``"dense"``, ``"unstructured"`` or ``"block4"``. How many ``values`` a sparse weight has depends on it.
    """
    groups = _up(inputs, _GROUP) // _GROUP
    if pattern == "dense":
        return {"panels": _up(outputs, _PANEL) * groups * _GROUP}
    if pattern == "unstructured":
        return {"masks": _up(outputs, _PANEL) * groups * _GROUP // 8, "offsets": _up(outputs, _PANEL) // _PANEL + 1}
    return {"masks": outputs * _up(groups, 64) // 8, "offsets": outputs + 1}


# Beside the modules, which an editable installation keeps apart from these files.
torch.ops.load_library(str(Path(_core.__file__).parent / "_ops.so"))


def _linear_shape(input: Tensor, scales: Tensor) -> Tensor:
    torch._check(
        input.dtype in (torch.float32, torch.bfloat16),
        lambda: f"mempool: `input` has to be float32 or bfloat16, and is {input.dtype}.",
    )
    torch._check(input.dim() >= 1, lambda: "mempool: `input` has to have a last dimension, the inputs of the layer.")
    torch._check(scales.dim() == 1, lambda: "mempool: `scales` has to have one dimension.")
    return input.new_empty([*input.shape[:-1], scales.shape[0]])


@torch.library.register_fake("mempool::int8_linear")
def _(input: Tensor, panels: Tensor, sums: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    return _linear_shape(input, scales)


@torch.library.register_fake("mempool::bitmap_linear")
def _(
    input: Tensor,
    masks: Tensor,
    values: Tensor,
    offsets: Tensor,
    sums: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    return _linear_shape(input, scales)


@torch.library.register_fake("mempool::block4_linear")
def _(
    input: Tensor,
    masks: Tensor,
    values: Tensor,
    offsets: Tensor,
    sums: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    return _linear_shape(input, scales)


@torch.library.register_fake("mempool::quantize_weight")
def _(weight: Tensor) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape, dtype=torch.int8), weight.new_empty(weight.shape[0])


@torch.library.register_fake("mempool::pack_int8")
def _(weight: Tensor) -> tuple[Tensor, Tensor]:
    outputs, inputs = weight.shape
    panels = weight.new_empty(packed_sizes("dense", outputs, inputs)["panels"], dtype=torch.uint8)
    return panels, weight.new_empty(outputs, dtype=torch.int32)


def _sparse_shapes(pattern: str, weight: Tensor, values: int | torch.SymInt) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs, inputs = weight.shape
    sizes = packed_sizes(pattern, outputs, inputs)
    return (
        weight.new_empty(sizes["masks"], dtype=torch.uint8),
        weight.new_empty(values, dtype=torch.uint8),
        weight.new_empty(sizes["offsets"], dtype=torch.int32),
        weight.new_empty(outputs, dtype=torch.int32),
    )


@torch.library.register_fake("mempool::pack_bitmap")
def _(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _sparse_shapes("unstructured", weight, torch.library.get_ctx().new_dynamic_size())


@torch.library.register_fake("mempool::pack_block4")
def _(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _sparse_shapes("block4", weight, torch.library.get_ctx().new_dynamic_size())


@torch.library.register_fake("mempool::unpack_int8")
def _(panels: Tensor, outputs: int, inputs: int) -> Tensor:
    return panels.new_empty((outputs, inputs), dtype=torch.int8)


@torch.library.register_fake("mempool::unpack_bitmap")
def _(masks: Tensor, values: Tensor, offsets: Tensor, sums: Tensor, outputs: int, inputs: int) -> Tensor:
    return masks.new_empty((outputs, inputs), dtype=torch.int8)


@torch.library.register_fake("mempool::unpack_block4")
def _(masks: Tensor, values: Tensor, offsets: Tensor, sums: Tensor, outputs: int, inputs: int) -> Tensor:
    return masks.new_empty((outputs, inputs), dtype=torch.int8)

