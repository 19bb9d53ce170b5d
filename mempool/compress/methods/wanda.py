"""Wanda: prunes each output's weights by their magnitude times the norm of the input that they are multiplied with.

After Wanda (Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from mempool.compress.layers import Batches, observe, require_numbers
from mempool.compress.masks import mask_of
from mempool.compress.methods.method import Layers, Method, Pruned, Settings


class _Squares:
    """Observes the sum over tokens of each input's square."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None

    def __call__(self, rows: Tensor) -> None:
        squares = rows.square().sum(dim=0)
        self.sum = squares if self.sum is None else self.sum + squares


def input_norms(model: nn.Module, names: Sequence[str], batches: Batches) -> dict[str, Tensor]:
    """The norm of each input of the named layers over all tokens of the calibration data, float32 [K]."""
    squares = {name: _Squares() for name in names}
    observe(model, squares, batches)
    return {name: square.sum.sqrt() for name, square in squares.items() if square.sum is not None}


def _prune(layers: Layers, settings: Settings) -> Iterator[Pruned]:
    norms = input_norms(layers.model, list(layers.shapes), settings.batches)
    for name in layers.shapes:
        weight = layers.weight_of(name)
        yield name, weight, _mask(name, weight, norms.pop(name), settings)


def _mask(name: str, weight: Tensor, norms: Tensor, settings: Settings) -> Tensor:
    """The mask of a layer. Its scores are freed on return, before the next steps need memory."""
    require_numbers(name, norms)
    return mask_of(weight.abs().mul_(norms), settings.sparsity, settings.pattern, rows_apart=True)


METHOD = Method("wanda", _prune, needs_calibration=True, changes_weights=False)
