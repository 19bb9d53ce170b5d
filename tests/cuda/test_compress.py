"""Models on a device are saved from it, filled on it and packed for it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mempool import compress

pytest.importorskip("safetensors")


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(32, 8))


def _devices(model: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}


@pytest.mark.parametrize(
    "how", [{}, {"weights": None}, {"sparsity": 0.5}, {"sparsity": 0.5, "pattern": "2:4", "target": "cuda"}]
)
def test_a_model_stays_on_its_device(tmp_path: Path, how: dict[str, Any]) -> None:
    source, file = _model(), tmp_path / "model.safetensors"
    compress.save(source, file)
    expected = copy.deepcopy(source)
    compress.load(expected, file, **how)
    model = copy.deepcopy(source).to("cuda")
    norm = model[1].weight
    for parameter in model.parameters():
        parameter.data.zero_()
    compress.load(model, file, **how)
    assert _devices(model) == {"cuda"}
    assert model[1].weight is norm
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name].cpu(), tensor)
    packed = tmp_path / "packed.safetensors"
    compress.save(model, packed)
    for again in (copy.deepcopy(model), copy.deepcopy(source).to("cuda")):
        compress.load(again, packed, weights=None)
        assert _devices(again) == {"cuda"}
        for name, tensor in expected.state_dict().items():
            assert torch.equal(again.state_dict()[name].cpu(), tensor)
