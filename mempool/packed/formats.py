"""The packed formats, an object for each, and the choice of the format for a weight.

A new format is an object here and a traits struct in ``csrc/kernels/formats``, which describes its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mempool.packed.format import TARGETS, VERSION, Buffer, Format, register_shapes

_operators = torch.ops.mempool
_PANEL, _GROUP, _WORD = 64, 4, 64  # outputs, inputs, bits
_TILE_OUTPUTS, _TILE_INPUTS = 16, 64


def _over(value: int, unit: int) -> int:
    return (value + unit - 1) // unit


def _padded(quantized: Tensor) -> Tensor:
    """[N, K] with its inputs padded to whole groups."""
    return pad(quantized, (0, -quantized.shape[1] % _GROUP)).contiguous()


def _panel_bytes(outputs: int, inputs: int) -> int:
    return _over(outputs, _PANEL) * _PANEL * _over(inputs, _GROUP) * _GROUP


def _tiles(outputs: int, inputs: int) -> int:
    return _over(outputs, _TILE_OUTPUTS) * _over(inputs, _TILE_INPUTS)


# Every weight is a byte. The fastest format for many tokens, unless most weights are zero.
DENSE = Format(
    pattern="dense",
    number=0,
    is_sparse=False,
    reads_anything=True,
    speed_rank=0,
    buffers={"panels": Buffer(torch.uint8, _panel_bytes)},
    pack=_operators.pack_int8.default,
    unpack=_operators.unpack_int8.default,
    check=_operators.check_int8.default,
    linear=_operators.int8_linear.default,
    bytes_of=lambda quantized: quantized.numel(),
    kept=lambda buffers: int(torch.count_nonzero(buffers["panels"])),
)

# A bit for each weight, and a byte for each that is not zero. A GEMV has less memory to read, and so is faster for up
# to some 12 tokens where the density is at most a half.
BITMAP = Format(
    pattern="unstructured",
    number=1,
    speed_rank=2,
    buffers={
        "masks": Buffer(torch.uint8, lambda outputs, inputs: _panel_bytes(outputs, inputs) // 8),
        "values": Buffer(torch.uint8, elements_of_zero=64),  # kernels may read a vector at their end
        "offsets": Buffer(torch.int32, lambda outputs, inputs: _over(outputs, _PANEL) + 1),
    },
    pack=_operators.pack_bitmap.default,
    unpack=_operators.unpack_bitmap.default,
    check=_operators.check_bitmap.default,
    linear=_operators.bitmap_linear.default,
    bytes_of=lambda quantized: quantized.numel() / 8 + int(quantized.count_nonzero()),
    kept=lambda buffers: int(np.unpackbits(buffers["masks"].cpu().numpy()).sum()),
)


def _block4_bytes(quantized: Tensor) -> float:
    blocks = int(_padded(quantized).view(torch.int32).count_nonzero())
    return quantized.numel() / 32 + _GROUP * blocks


# A bit for each block of 4 inputs of an output, and the blocks that are not all zero. Blocks of zeros are not
# multiplied, so it is faster for many tokens, too, where at least 80% of the blocks are zero.
BLOCK4 = Format(
    pattern="block4",
    number=2,
    speed_rank=2,
    buffers={
        "masks": Buffer(torch.uint8, lambda outputs, inputs: outputs * _over(_over(inputs, _GROUP), _WORD) * 8),
        "values": Buffer(torch.uint8),
        "offsets": Buffer(torch.int32, lambda outputs, inputs: outputs + 1),
    },
    pack=_operators.pack_block4.default,
    unpack=_operators.unpack_block4.default,
    check=_operators.check_block4.default,
    linear=_operators.block4_linear.default,
    bytes_of=_block4_bytes,
    kept=lambda buffers: buffers["values"].numel(),
)


def _misfit_24(quantized: Tensor) -> str | None:
    outputs, inputs = quantized.shape
    fours = _padded(quantized).view(outputs, _over(inputs, _GROUP), _GROUP)
    if not bool((fours.count_nonzero(dim=2) > 2).any()):
        return None
    return "four inputs of an output have more than two weights: prune it with pattern='2:4' first."


# At most two of each four inputs are kept, laid out for sparse tensor cores: for GPUs alone.
SPARSE24 = Format(
    pattern="2:4",
    number=3,
    speed_rank=1,
    targets=("cuda",),
    buffers={
        "values": Buffer(torch.uint8, lambda outputs, inputs: 512 * _tiles(outputs, inputs)),
        # Weights that are zero have places 0 and 1 in each four bits.
        "places": Buffer(torch.int32, lambda outputs, inputs: 32 * _tiles(outputs, inputs), fill=0x44444444),
    },
    pack=_operators.pack_sparse24.default,
    unpack=_operators.unpack_sparse24.default,
    check=_operators.check_sparse24.default,
    linear=_operators.sparse24_linear.default,
    bytes_of=lambda quantized: (512 + 4 * 32) * _tiles(*quantized.shape),
    kept=lambda buffers: int(torch.count_nonzero(buffers["values"])),
    misfit=_misfit_24,
)

FORMATS: Mapping[str, Format] = {format.pattern: format for format in (DENSE, BITMAP, BLOCK4, SPARSE24)}
for _format in FORMATS.values():
    register_shapes(_format)


def packed_sizes(pattern: str, outputs: int, inputs: int) -> dict[str, int]:
    """The number of elements of each buffer of a weight ``[outputs, inputs]`` that follows from its shape alone.

    ``pattern``: ``"dense"``, ``"unstructured"``, ``"block4"`` or ``"2:4"``. The number of ``values`` of
    ``"unstructured"`` and ``"block4"`` depends on the weight, and is left out. Raises ValueError for another pattern.
    """
    if pattern not in FORMATS:
        raise ValueError(f"the pattern is {_listed(FORMATS)}, not {pattern!r}.")
    return FORMATS[pattern].sizes(outputs, inputs)


def _listed(patterns: Iterable[str]) -> str:
    *others, last = map(repr, patterns)
    return f"{', '.join(others)} or {last}"


def sparse_format(pattern: str) -> Format:
    """The sparse format of a pattern. Raises ValueError for another name."""
    sparse = {name: format for name, format in FORMATS.items() if format.is_sparse}
    if pattern not in sparse:
        raise ValueError(f"the pattern is {_listed(sparse)}, not {pattern!r}.")
    return sparse[pattern]


def is_header(value: object) -> TypeGuard[Tensor]:
    """Whether a value can be the ``format`` buffer of a layer."""
    return isinstance(value, Tensor) and not value.is_meta and value.dtype == torch.int32 and value.numel() == 4


def format_of(header: object) -> Format | None:
    """The format that the ``format`` buffer of a layer names; None for one that this version does not read."""
    if not is_header(header):
        return None
    version, number, *_ = header.tolist()
    known = {format.number: format for format in FORMATS.values()}
    return known.get(number) if version == VERSION else None


def require_target(target: str) -> None:
    if target not in TARGETS:
        raise ValueError(f"the target is {_listed(TARGETS)}, not {target!r}.")


def smallest_sparse(quantized: Tensor) -> Format:
    """The sparse format that takes the fewest bytes, among those that every target runs."""
    everywhere = [format for format in FORMATS.values() if format.is_sparse and format.targets == TARGETS]
    return min(everywhere, key=lambda format: format.bytes_of(quantized))


# A format is chosen over one that multiplies faster only where it takes at most this share of its bytes.
_WORTH = 0.8


def format_for(quantized: Tensor, target: str) -> Format:
    """The format for an int8 weight [N, K] on a target: the fastest, unless a slower one takes a fifth less memory."""
    # A sparse format takes at least a byte for each weight that is not zero, and a bit for each 32 weights.
    if quantized.numel() / 32 + int(quantized.count_nonzero()) > _WORTH * quantized.numel():
        return DENSE
    runnable = [format for format in FORMATS.values() if target in format.targets]
    sizes = {format.pattern: format.bytes_of(quantized) for format in runnable}
    best = DENSE
    for rank in sorted({format.speed_rank for format in runnable if format is not DENSE}):
        rivals = [format for format in runnable if format.speed_rank == rank and format is not DENSE]
        smallest = min(rivals, key=lambda format: sizes[format.pattern])
        is_worth_it = sizes[smallest.pattern] <= _WORTH * sizes[best.pattern]
        if is_worth_it and smallest.misfit(quantized) is None:
            best = smallest
    return best
