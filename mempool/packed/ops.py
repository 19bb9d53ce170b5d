"""The operators ``torch.ops.mempool.*``, which run, pack, unpack and check packed weights.

``int8_linear(input, panels, sums, scales, bias, inputs)`` and ``bitmap_linear`` and ``block4_linear(input, masks,
values, offsets, sums, scales, bias, inputs)`` take rows of float32 or bfloat16, ``[..., inputs]``, and return
``[..., outputs]`` of that type. Each row is quantized to int8 with a scale of its own; products are summed in int32,
exactly. ``formats.py`` has the formats; all buffers are uint8, int32 and float32, contiguous, and on one device: the
CPU or, where this build has kernels for it (``HAS_CUDA``), a GPU. ``sparse24_linear(input, values, places, sums,
scales, bias, inputs)`` runs on a GPU alone; in its weight at most two of each four inputs are not zero.

Every call checks the shapes of its buffers. It does not check that their contents fit each other (nor, on a GPU, that
``values`` is as long as ``offsets`` say): run ``check_…`` once on buffers from a file or another process, as the
modules of ``mempool.nn`` do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mempool import _build, _torch_cpu

__all__ = ["CUDA_PROBLEM", "HAS_CUDA", "MOST_INPUTS", "refuse_on_gpu"]

MOST_INPUTS = 65536  # of a layer: with more an int32 sum could overflow

_FOLDER = _build.shim_folder()
torch.ops.load_library(str(_FOLDER / "_ops.so"))  # type: ignore[no-untyped-call]


def _load_cuda_kernels() -> str:
    """Why there are no kernels for a GPU; empty when they are loaded."""
    if _torch_cpu.without_cuda_kernels:
        return f"this build has no kernels for a GPU: {_torch_cpu.without_cuda_kernels}"
    try:
        torch.ops.load_library(str(_FOLDER / "_ops_cuda.so"))  # type: ignore[no-untyped-call]
    except OSError as error:  # built for another torch, or not there any more
        return f"the library of kernels for a GPU {_build.load_problem(error)}"
    return ""


CUDA_PROBLEM = _load_cuda_kernels()
HAS_CUDA = not CUDA_PROBLEM


def _no_kernels(*_: object) -> Tensor:
    raise RuntimeError(f"mempool: {CUDA_PROBLEM}. Or move the layer to the CPU.")


_library: Any = torch.library.Library
_refusals = None if HAS_CUDA else _library("mempool", "IMPL")  # kept alive: its registrations end with it


def refuse_on_gpu(operator: Any) -> None:
    """Where there are no kernels for a GPU, makes an operator raise the reason on CUDA tensors."""
    if _refusals is not None:
        _refusals.impl(operator.name().removeprefix("mempool::"), _no_kernels, "CUDA")


# Fake kernels (shapes and types alone) of the operators that belong to no format, for torch.compile and torch.export.


def _refuse_backward(gradient: Tensor, input: Tensor) -> Tensor:
    return torch.empty_like(input)


def _quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape, dtype=torch.int8), weight.new_empty(weight.shape[0])


torch.library.register_fake("mempool::refuse_backward", _refuse_backward)
torch.library.register_fake("mempool::quantize_weight", _quantize_weight)
