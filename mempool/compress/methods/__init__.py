"""The pruning methods by name. A new method is a file here and a line in METHODS."""

from __future__ import annotations

from mempool.compress.methods import magnitude, sparsegpt, wanda
from mempool.compress.methods.method import Layers, Method, Pruned, Settings

METHODS = {method.name: method for method in (magnitude.METHOD, wanda.METHOD, sparsegpt.METHOD)}

__all__ = ["METHODS", "Layers", "Method", "Pruned", "Settings"]
