"""Layers that a file has packed, for models that want them dense: refused by name, or unpacked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_states import modules_of, skeleton, state_of
from torch import nn

from mempool.compress import LoadReport, convert, load, prune_, save
from mempool.nn import Int8Linear, SparseInt8Linear

safetensors = pytest.importorskip("safetensors.torch")


class _Reader(nn.Module):
    """Its code reads the weight of ``head``, as that of T5 and Mamba does."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Linear(16, 16, dtype=dtype)
        self.head = nn.Linear(16, 8, dtype=dtype)

    def forward(self, input: torch.Tensor) -> Any:
        return nn.functional.linear(self.body(input), self.head.weight, self.head.bias)


def _all_packed(make: Callable[[nn.Linear], nn.Module] = Int8Linear.from_linear) -> nn.Module:
    model = _Reader()
    prune_(model, 0.5, pattern="2:4")
    model.body, model.head = make(model.body), make(model.head)  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize("build", [_Reader, lambda: skeleton(_Reader)])
def test_a_packed_layer_whose_weight_is_read_is_refused(
    file: Path, build: Callable[[], nn.Module], weights: str | None
) -> None:
    save(_all_packed(), file)
    model = build()
    before, modules = state_of(model), modules_of(model)
    with pytest.raises(ValueError, match=r"which a packed layer has not: head\. skip=\['head'\] unpacks them"):
        load(model, file, weights=weights)
    assert (state_of(model), modules_of(model)) == (before, modules)
    assert load(model, file, weights=weights, skip=["head"]) == LoadReport((), ())
    assert model(torch.randn(2, 16)).shape == (2, 8)


@pytest.mark.parametrize("pattern", ["dense", "unstructured", "block4", "2:4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_skip_unpacks_what_the_file_has_packed(file: Path, pattern: str, dtype: torch.dtype) -> None:
    def make(layer: nn.Linear) -> nn.Module:
        scale = torch.linspace(0.5, 2, layer.in_features)
        if pattern == "dense":
            return Int8Linear.from_linear(layer, scale)
        return SparseInt8Linear.from_linear(layer, pattern, scale)

    source = _all_packed(make)
    save(source, file)
    for model in (_Reader(dtype), skeleton(lambda: _Reader(dtype))):
        head = model.head
        assert load(model, file, skip=["h*"]) == LoadReport((), ())
        assert model.head is head
        assert type(model.body) is type(source.body)
        assert torch.equal(head.weight, source.head.dequantize().to(dtype))
        assert torch.equal(head.bias, source.head.bias.to(dtype))


def test_a_tied_weight_and_a_packed_one_are_not_both_taken(file: Path) -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(8, 16), "head": nn.Linear(16, 8, bias=False)})
    source = copy.deepcopy(model)
    source["head"] = Int8Linear.from_linear(source["head"])
    save(source, file)
    model["head"].weight = model["embedding"].weight
    with pytest.raises(ValueError, match=r"'head\.weight' are one tensor in the model, and in the checkpoint two"):
        load(model, file, skip=["head"])


def test_a_subclass_of_linear_takes_the_unpacked_weight(file: Path) -> None:
    source = _all_packed()
    save(source, file)
    model = _Reader()
    model.head = nn.modules.linear.NonDynamicallyQuantizableLinear(16, 8)
    with pytest.raises(ValueError, match=r"and the model a NonDynamically.* skip=\['head'\] unpacks it"):
        load(model, file)
    load(model, file, skip=["head"])
    assert torch.equal(model.head.weight, source.head.dequantize())


def test_an_unsound_or_misshapen_packed_layer_is_not_unpacked(file: Path) -> None:
    save(_all_packed(), file)
    model = _Reader()
    model.head = nn.Linear(16, 9)
    with pytest.raises(
        ValueError, match=r"(?s)layer 'head' of the checkpoint: .*8 outputs and 16 inputs, and this layer"
    ):
        load(model, file, skip=["head"])
    state = safetensors.load_file(file)
    state["head.sums"] += 1
    safetensors.save_file(state, file)
    model = _Reader()
    before = state_of(model)
    with pytest.raises(ValueError, match="layer 'head' of the checkpoint"):
        load(model, file, skip=["head"])
    assert state_of(model) == before


def test_skip_is_looked_at_where_nothing_is_packed(file: Path) -> None:
    save(_Reader(), file)
    with pytest.raises(ValueError, match="no layer's name matches 'hed'"):
        load(_Reader(), file, weights=None, skip=["hed"])


def test_packed_layers_of_a_file_know_their_name(file: Path) -> None:
    source = nn.ModuleDict({"a": nn.Sequential(nn.Linear(8, 8))})
    save(convert(copy.deepcopy(source)), file)
    load(source, file)
    with pytest.raises(AttributeError, match=r"skip=\['a\.0'\]"):
        _ = source["a"][0].weight
