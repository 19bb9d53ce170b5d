"""From scores to masks: which weights stay, by pattern."""

from __future__ import annotations

import torch
from torch import Tensor

PATTERNS = ("unstructured", "2:4", "block4")
GROUP = 4  # inputs


def grouped(scores: Tensor) -> Tensor:
    """``[N, K]`` as ``[N, ceil(K / 4), 4]``; what is beyond K scores 0."""
    outputs, inputs = scores.shape
    padded = torch.nn.functional.pad(scores, (0, -inputs % GROUP))
    return padded.view(outputs, -1, GROUP)


def keep_best(scores: Tensor, sparsity: float) -> Tensor:
    """A boolean mask over the last dimension, False for the ``round(sparsity * n)`` lowest of each row."""
    count = scores.shape[-1]
    dropped = round(sparsity * count)
    mask = torch.ones_like(scores, dtype=torch.bool)
    if dropped:
        lowest = scores.topk(dropped, dim=-1, largest=False, sorted=False).indices
        mask.scatter_(-1, lowest, False)
    return mask


def mask_of(scores: Tensor, sparsity: float, pattern: str, rows_apart: bool) -> Tensor:
    """A boolean mask like ``scores`` [N, K], True for what stays.

    ``rows_apart``: the share is kept in each row, not in the layer as a whole. ``2:4`` keeps the best 2 of every 4
    inputs, ``block4`` blocks of 4 inputs by the sum of their squared scores.
    """
    if pattern == "2:4":
        return _flat(keep_best(grouped(scores), 0.5), scores.shape)
    unit = scores if pattern == "unstructured" else grouped(scores).square().sum(dim=-1)
    mask = keep_best(unit if rows_apart else unit.flatten(), sparsity).view(unit.shape)
    if pattern == "unstructured":
        return mask
    return _flat(mask.unsqueeze(-1).expand(-1, -1, GROUP), scores.shape)


def _flat(groups: Tensor, shape: torch.Size) -> Tensor:
    return groups.reshape(shape[0], -1)[:, : shape[1]]
