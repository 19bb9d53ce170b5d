"""A model from a file, packed layer by layer, and to one.

``mempool.compress.load``, ``save`` and ``meta_parameters`` are these, too.
"""

from __future__ import annotations

from mempool.checkpoint.loading import LoadReport, load
from mempool.checkpoint.saving import save
from mempool.checkpoint.skeletons import meta_parameters

__all__ = ["LoadReport", "load", "meta_parameters", "save"]
