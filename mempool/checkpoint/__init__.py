"""Loads a model from a file, packing it layer by layer, and saves one to a file.

``mempool.compress`` has the same functions ``load``, ``save`` and ``meta_parameters``.
"""

from __future__ import annotations

from mempool.checkpoint.loading import LoadReport, load
from mempool.checkpoint.saving import save
from mempool.checkpoint.skeletons import meta_parameters

__all__ = ["LoadReport", "load", "meta_parameters", "save"]
