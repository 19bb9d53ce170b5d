"""Makes pruning masks from scores: which weights stay, by pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

PATTERNS = ("unstructured", "2:4", "block4")
GROUP = 4  # inputs
_CHUNK = 1 << 17  # scores that are processed together, so that temporaries take some MiB


def grouped(scores: Tensor) -> Tensor:
    """``[N, K]`` as ``[N, ceil(K / 4), 4]``; the padding beyond K has the score 0."""
    outputs, inputs = scores.shape
    padded = torch.nn.functional.pad(scores, (0, -inputs % GROUP))
    return padded.view(outputs, padded.shape[1] // GROUP, GROUP)


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
    """A boolean mask like ``scores`` [N, K], True for weights that stay. Scores are float32 and not negative.

    ``rows_apart``: the sparsity holds in each row, not only in the layer as a whole. ``2:4`` keeps the best 2 of every
    4 inputs, ``block4`` blocks of 4 inputs by the sum of their squared scores. Beside the mask and a score for each
    block, this takes no more than some MiB.
    """
    if pattern == "2:4":
        return _by_rows(scores, lambda rows: _flat(keep_best(grouped(rows), 0.5), rows.shape))
    unit = scores if pattern == "unstructured" else _by_rows(scores, lambda rows: grouped(rows).square().sum(dim=-1))
    mask = _by_rows(unit, lambda rows: keep_best(rows, sparsity)) if rows_apart else _keep_best_of_all(unit, sparsity)
    if pattern == "unstructured":
        return mask
    return _flat(mask.unsqueeze(-1).expand(-1, -1, GROUP), scores.shape)


def _flat(groups: Tensor, shape: torch.Size) -> Tensor:
    return groups.flatten(1)[:, : shape[1]]


def _by_rows(scores: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies a function to some rows at a time, and joins the results."""
    result: Tensor | None = None
    count = max(1, _CHUNK // max(1, scores.shape[1]))
    for first in range(0, max(1, scores.shape[0]), count):
        part = function(scores[first : first + count])
        if result is None:
            result = part.new_empty((scores.shape[0], *part.shape[1:]))
        result[first : first + count] = part
    assert result is not None
    return result


def _keep_best_of_all(scores: Tensor, sparsity: float) -> Tensor:
    """As ``keep_best``, over all elements; of equal scores the first go."""
    dropped = round(sparsity * scores.numel())
    mask = torch.ones_like(scores, dtype=torch.bool)
    if dropped == 0:
        return mask
    # The bits of floats that are not negative, as integers, have the order of the floats. A radix selection, by their
    # upper and then by their lower half, finds the last score to go without a sorted copy.
    parts = torch.split(scores.contiguous().view(torch.int32).flatten(), _CHUNK)
    upper, before = _place_of(dropped, (part >> 16 for part in parts))
    lower, equal = _place_of(dropped - before, (part[part >> 16 == upper] & 0xFFFF for part in parts))
    last, left = upper << 16 | lower, dropped - before - equal  # how many scores equal to it go
    for part, kept in zip(parts, torch.split(mask.view(-1), _CHUNK), strict=True):
        torch.gt(part, last, out=kept)
        ties = (part == last).nonzero().flatten()
        kept[ties[left:]] = True
        left = max(0, left - len(ties))
    return mask


def _place_of(rank: int, parts: Iterable[Tensor]) -> tuple[int, int]:
    """The number, 0 to 65,535, at this place (from 1 on) of all numbers in order, and how many numbers are less."""
    counts = sum(torch.bincount(part, minlength=1 << 16) for part in parts)
    assert isinstance(counts, Tensor)
    up_to = counts.cumsum(dim=0)
    number = int(torch.searchsorted(up_to, rank))
    return number, int(up_to[number] - counts[number])
