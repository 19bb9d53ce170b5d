"""Models that are small enough to be compressed in a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mempool import compress


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(50, 64), nn.Linear(64, 96), nn.ReLU(), nn.LayerNorm(96), nn.Linear(96, 80, bias=False)
    ).eval()


def packed_model() -> nn.Sequential:
    """``small_model`` with a dense and a sparse packed layer."""
    return compress.convert(compress.prune_(small_model(), 0.6, skip=["1"]))


def token_batches(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(50, (8, 16), generator=generator) for _ in range(count)]


def loaded(model: nn.Module, checkpoint: Path, **how: Any) -> Any:
    """The model, filled."""
    compress.load(model, checkpoint, **how)
    return model


def share_of_zeros(layer: nn.Linear) -> float:
    return float((layer.weight == 0).float().mean())


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def changed_model(change: Callable[[nn.Sequential], object]) -> nn.Sequential:
    model = small_model()
    with torch.no_grad():
        change(model)
    return model


def tied_model() -> nn.Sequential:
    """An embedding, and an output layer with the same weight."""
    model = nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 50, bias=False))
    model[1].weight = model[0].weight
    return model
