"""Masks keep the best scores, exactly as many as the sparsity says: compared with scores that are sorted as a whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mempool.compress import masks


def _all_different(outputs: int, inputs: int) -> Tensor:
    order = torch.randperm(outputs * inputs, generator=torch.Generator().manual_seed(1))
    return (order.view(outputs, inputs) / 7).float()


def _mostly_equal(outputs: int, inputs: int) -> Tensor:
    return torch.randint(4, (outputs, inputs), generator=torch.Generator().manual_seed(1)).float()


def _of_all_sizes(outputs: int, inputs: int) -> Tensor:
    """From the smallest number to what is infinite, with zeros."""
    bits = torch.randint(0x7F800001, (outputs, inputs), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    return torch.where(bits % 5 == 0, 0.0, bits.view(torch.float32))


@pytest.mark.parametrize("scores_of", [_all_different, _mostly_equal, _of_all_sizes])
@pytest.mark.parametrize("shape", [(9, 13), (1, 1), (64, 32), (3, 0), (0, 4), (2, 65)])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("rows_apart", [False, True])
def test_the_lowest_go(
    monkeypatch: pytest.MonkeyPatch,
    scores_of: Callable[[int, int], Tensor],
    shape: tuple[int, int],
    sparsity: float,
    rows_apart: bool,
) -> None:
    monkeypatch.setattr(masks, "_CHUNK", 50)  # so that there are several
    scores = scores_of(*shape)
    mask = masks.mask_of(scores, sparsity, "unstructured", rows_apart)
    assert (mask.shape, mask.dtype) == (scores.shape, torch.bool)
    groups = zip(scores, mask, strict=True) if rows_apart else [(scores.flatten(), mask.flatten())]
    for values, kept in groups:
        dropped = round(sparsity * values.numel())
        assert int((~kept).sum()) == dropped
        if 0 < dropped < values.numel():
            assert values[~kept].max() <= values[kept].min()


@pytest.mark.parametrize("shape", [(9, 13), (1, 1), (64, 32), (2, 65), (0, 4)])
def test_patterns_are_kept_across_what_is_looked_at_together(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    scores = _all_different(*shape)
    whole = {pattern: masks.mask_of(scores, 0.5, pattern, rows_apart=False) for pattern in masks.PATTERNS}
    monkeypatch.setattr(masks, "_CHUNK", 50)
    for pattern, expected in whole.items():
        assert torch.equal(masks.mask_of(scores, 0.5, pattern, rows_apart=False), expected)
    padded = torch.nn.functional.pad(whole["2:4"], (0, -shape[1] % 4)).view(shape[0], -(-shape[1] // 4), 4)
    assert not bool((padded.sum(dim=2) > 2).any())


def test_scores_of_which_only_columns_are_given_are_masked_too() -> None:
    scores = _all_different(8, 64)[:, 3:19]
    assert torch.equal(
        masks.mask_of(scores, 0.5, "unstructured", rows_apart=False),
        masks.mask_of(scores.contiguous(), 0.5, "unstructured", rows_apart=False),
    )
