"""The operators ``torch.ops.mempool.*`` and the sizes of their buffers; ``mempool.packed`` implements both."""

from __future__ import annotations

from mempool.packed.formats import packed_sizes
from mempool.packed.ops import CUDA_PROBLEM, HAS_CUDA, MOST_INPUTS

__all__ = ["CUDA_PROBLEM", "HAS_CUDA", "MOST_INPUTS", "packed_sizes"]
