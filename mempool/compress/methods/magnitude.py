"""Magnitude pruning: the smallest weights of a layer go."""

from __future__ import annotations

from collections.abc import Iterator

from mempool.compress.masks import mask_of
from mempool.compress.methods.method import Layers, Method, Pruned, Settings


def _prune(layers: Layers, settings: Settings) -> Iterator[Pruned]:
    for name in layers.shapes:
        weight = layers.weight_of(name)
        yield name, weight, mask_of(weight.abs(), settings.sparsity, settings.pattern, rows_apart=False)


METHOD = Method("magnitude", _prune, needs_calibration=False, changes_weights=False)
