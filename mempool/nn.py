"""Layers whose weights stay packed while they are used, as modules: ``mempool.packed.linear`` has them."""

from __future__ import annotations

from mempool.packed.linear import Int8Linear, SparseInt8Linear, pack_linear

__all__ = ["Int8Linear", "SparseInt8Linear", "pack_linear"]
