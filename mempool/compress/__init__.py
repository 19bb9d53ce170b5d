"""Compresses a model: prunes its weights, packs its Linear layers as int8, and says what that gains.

>>> mempool.compress.prune_(model, sparsity=0.5, method="wanda", calibration=batches)
>>> mempool.compress.convert(model)
>>> print(mempool.compress.report(model))
>>> mempool.compress.save(model, "small.safetensors")

A model whose dense weights do not fit into memory is built without memory, and packed layer by layer from its file:

>>> with mempool.compress.meta_parameters():
...     model = Model()
>>> mempool.compress.load(model, "large.safetensors")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mempool import _lazy
from mempool.compress.converting import convert
from mempool.compress.distilling import distill_
from mempool.compress.pruning import prune_
from mempool.compress.reporting import LayerReport, Report, report

if TYPE_CHECKING:
    from mempool.checkpoint import LoadReport, load, meta_parameters, save

__all__ = [
    "prune_",
    "distill_",
    "convert",
    "report",
    "load",
    "save",
    "meta_parameters",
    "Report",
    "LayerReport",
    "LoadReport",
]

# mempool.checkpoint reads and writes files. It stands above this package, so these names are resolved lazily.
_CHECKPOINT = ("LoadReport", "load", "meta_parameters", "save")
__getattr__, __dir__ = _lazy.exports(__name__, dict.fromkeys(_CHECKPOINT, "mempool.checkpoint"))
