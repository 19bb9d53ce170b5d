"""The operators ``torch.ops.mempool.*``, and what their buffers are: ``mempool.packed.ops`` registers them."""

from __future__ import annotations

from mempool.packed.ops import CUDA_PROBLEM, HAS_CUDA, MOST_INPUTS, packed_sizes

__all__ = ["CUDA_PROBLEM", "HAS_CUDA", "MOST_INPUTS", "packed_sizes"]
