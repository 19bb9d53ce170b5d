"""The short way from a model to a compressed one.

>>> mempool.compress.prune_(model, sparsity=0.5, method="wanda", calibration=batches)
>>> mempool.compress.convert(model)
>>> print(mempool.compress.report(model))
>>> mempool.compress.save(model, "small.safetensors")

A model that does not fit into memory as it is: built with no memory, packed layer by layer as its file is read.

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

# Files are read and written by mempool.checkpoint, which stands above this package.
_CHECKPOINT = ("LoadReport", "load", "meta_parameters", "save")
__getattr__, __dir__ = _lazy.exports(__name__, dict.fromkeys(_CHECKPOINT, "mempool.checkpoint"))
