"""SparseGPT: prunes a layer and changes the weights that stay to make up for those that go.

After SparseGPT (Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023):
columns are pruned from left to right, and the error of each is spread over those to its right by the inverse of the
Hessian of the layer's squared output error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mempool.compress.layers import observe, require_numbers
from mempool.compress.masks import GROUP, mask_of
from mempool.compress.methods.method import Layers, Method, Pruned, Settings

COLUMNS = 128  # columns that are pruned together; a multiple of GROUP
# One pass over the calibration data sums the Hessians of as many layers as fit into this many bytes.
HESSIAN_BYTES = 1 << 30
DAMPING = 0.01  # the share of the diagonal's mean that is added to the diagonal, so that the Hessian can be inverted


def inverse_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of ``hessian`` [K, K] float32, damped until it can be inverted."""
    damping = DAMPING * float(hessian.diagonal().mean())
    for _ in range(8):
        damped = hessian.clone()
        damped.diagonal().add_(max(damping, 1e-8))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        damping *= 10
    raise ValueError("the calibration data gives no Hessian that can be inverted: is there a NaN in it?")


def prune(weight: Tensor, hessian: Tensor, sparsity: float, pattern: str) -> tuple[Tensor, Tensor]:
    """The new weight [N, K] float32 and its boolean mask, True for weights that stay.

    ``hessian`` [K, K] float32, where the weight is: the sum over tokens of x xᵀ, for the layer's inputs x.
    """
    with torch.autocast(weight.device.type, enabled=False):  # all sums are float32
        return _pruned(weight.clone(), hessian, sparsity, pattern)


def _pruned(weight: Tensor, hessian: Tensor, sparsity: float, pattern: str) -> tuple[Tensor, Tensor]:
    dead = hessian.diagonal() == 0  # inputs that were always zero: their weights have no effect
    hessian = hessian + torch.diag(dead.to(hessian.dtype))
    weight[:, dead] = 0
    factor = inverse_factor(hessian)
    mask = torch.ones_like(weight, dtype=torch.bool)
    inputs = weight.shape[1]
    for first in range(0, inputs, COLUMNS):
        last = min(inputs, first + COLUMNS)
        block, square = weight[:, first:last], factor[first:last, first:last]
        errors = torch.zeros_like(block)
        if pattern != "2:4":
            kept = mask_of(block.abs() / square.diagonal(), sparsity, pattern, rows_apart=False)
        for i in range(last - first):
            if pattern == "2:4" and i % GROUP == 0:
                # The mask of a group is chosen after the errors of all columns to its left were added.
                here = slice(i, min(i + GROUP, last - first))
                scores = block[:, here].abs() / square.diagonal()[here]
                mask[:, first:last][:, here] = mask_of(scores, 0.5, "2:4", rows_apart=True)
            elif pattern != "2:4":
                mask[:, first + i] = kept[:, i]
            column = block[:, i]
            pruned = torch.where(mask[:, first + i], column, 0.0)
            error = (column - pruned) / square[i, i]
            block[:, i:] -= error.unsqueeze(1) * square[i, i:].unsqueeze(0)
            block[:, i] = pruned
            errors[:, i] = error
        weight[:, last:] -= errors @ factor[first:last, last:]
    return weight, mask


class _Hessian:
    """Observes a layer's inputs x: the sum over tokens of x xᵀ."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None

    def __call__(self, rows: Tensor) -> None:
        if self.sum is None:
            self.sum = rows.new_zeros(rows.shape[1], rows.shape[1])
        self.sum.addmm_(rows.T, rows)


def _by_bytes(shapes: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """The names in order, in lists whose Hessians fit into HESSIAN_BYTES together."""
    groups: list[list[str]] = [[]]
    left = HESSIAN_BYTES
    for name, (_, inputs) in shapes.items():
        size = 4 * inputs**2
        if groups[-1] and size > left:
            groups.append([])
            left = HESSIAN_BYTES
        groups[-1].append(name)
        left -= size
    return [group for group in groups if group]


def _of_layers(layers: Layers, settings: Settings) -> Iterator[Pruned]:
    for group in _by_bytes(layers.shapes):
        hessians = {name: _Hessian() for name in group}
        observe(layers.model, hessians, settings.batches)  # the data goes through the layers that are pruned already
        for name in group:
            hessian = hessians.pop(name).sum
            assert hessian is not None
            require_numbers(name, hessian)
            yield name, *prune(layers.weight_of(name), hessian, settings.sparsity, settings.pattern)


METHOD = Method("sparsegpt", _of_layers, needs_calibration=True, changes_weights=True)
