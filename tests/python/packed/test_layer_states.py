"""Packed layers are copied, pickled, saved and loaded; damaged buffers are refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from packed_layers import PATTERNS, packed, pruned

from mempool.nn import Int8Linear, SparseInt8Linear


@pytest.mark.parametrize("pattern", PATTERNS)
def test_copies_and_pickles_compute_the_same(pattern: str) -> None:
    layer = packed(pattern, pruned())
    input = torch.randn(3, 70)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(input), layer(input))
        assert repr(other) == repr(layer)


@pytest.mark.parametrize("pattern", ["unstructured", "block4"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("assign", [False, True])
def test_buffers_of_another_density_load(pattern: str, device: str, assign: bool, tmp_path: Path) -> None:
    layer = packed(pattern, pruned(density=0.4))
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    state = torch.load(tmp_path / "layer.pt")
    other = torch.nn.Sequential(SparseInt8Linear(70, 90, pattern="unstructured", device=device))
    other.load_state_dict({f"0.{name}": value for name, value in state.items()}, assign=assign)
    input = torch.randn(3, 70)
    assert torch.equal(other(input), layer(input))
    assert other[0].pattern == pattern
    assert (other[0].values.data_ptr() == state["values"].data_ptr()) == assign


def test_a_checkpoint_of_safetensors_loads(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = torch.nn.Sequential(packed("block4", pruned()), packed("dense", pruned(90, 20)))
    safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
    for assign in (False, True):
        other = torch.nn.Sequential(SparseInt8Linear(70, 90), Int8Linear(90, 20))
        other.load_state_dict(safetensors.load_file(tmp_path / "model.safetensors"), assign=assign)
        input = torch.randn(3, 70)
        assert torch.equal(other(input), model(input))


def _damaged(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    state = copy.deepcopy(packed("unstructured", pruned()).state_dict())
    state[name] = change(state[name])
    return state


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("masks", lambda masks: masks ^ 1, "do not fit each other"),
        ("masks", lambda masks: masks[:-8], "`masks` has"),
        ("values", lambda values: values[:-64], "do not fit each other"),
        ("values", lambda values: values.flip(0), "do not fit each other"),
        ("values", lambda values: values.int(), "`values` has to be torch.uint8"),
        ("offsets", lambda offsets: offsets + 1, "do not fit each other"),
        ("sums", lambda sums: sums + 1, "do not fit each other"),
        ("scales", lambda scales: scales * float("nan"), "`scales` has a NaN"),
        ("scales", lambda scales: scales[:5], "`scales` has shape"),
        ("bias", lambda bias: bias.unsqueeze(0), "`bias` has shape"),
        ("format", lambda header: header + torch.tensor([1, 0, 0, 0]).int(), "reads version 1"),
        ("format", lambda header: header + torch.tensor([0, 9, 0, 0]).int(), "reads version 1"),
        ("format", lambda header: header + torch.tensor([0, 0, 1, 0]).int(), "91 outputs"),
        ("format", lambda header: header[:2], "4 numbers"),
        ("format", lambda header: header.tolist(), "4 numbers"),
        ("format", lambda header: torch.tensor([1, 0, 90, 70], dtype=torch.int32), "is dense"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    layer = packed("unstructured", pruned(density=0.6))
    model = torch.nn.ModuleDict({"gate": layer})
    input = torch.randn(3, 70)
    before = layer(input)
    state = {f"gate.{key}": value for key, value in _damaged(name, change).items()}
    with pytest.raises(RuntimeError, match=message) as caught:
        model.load_state_dict(state)
    assert "gate" in str(caught.value)
    assert torch.equal(layer(input), before)


def test_missing_and_unexpected_buffers_are_named() -> None:
    state = packed("unstructured", pruned()).state_dict()
    del state["offsets"]
    state["lora.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*offsets.*Unexpected key.*lora.weight"):
        SparseInt8Linear(70, 90).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*bias"):
        SparseInt8Linear(70, 90, bias=False).load_state_dict(packed("unstructured", pruned()).state_dict())
