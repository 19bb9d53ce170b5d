"""The modules that run on packed int8 weights; ``mempool.packed.linear`` implements them."""

from __future__ import annotations

from mempool.packed.linear import Int8Linear, SparseInt8Linear, pack_linear

__all__ = ["Int8Linear", "SparseInt8Linear", "pack_linear"]
