"""`convert` warns of layers that it leaves dense, and finds those whose weight the model's code reads."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from small_models import tied_model
from torch import nn

from mempool.compress import convert, prune_
from mempool.nn import Int8Linear, SparseInt8Linear


def _packed_and_said(model: nn.Module, **arguments: Any) -> tuple[set[str], list[str]]:
    """Names of packed layers, and warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convert(model, **arguments)
    assert all(warning.filename == __file__ for warning in caught)
    names = {name for name, module in model.named_modules() if isinstance(module, (Int8Linear, SparseInt8Linear))}
    return names, [str(warning.message) for warning in caught]


class _OwnLinear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input @ self.weight.T


class _Conv1D(nn.Module):  # as in GPT-2
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input @ self.weight


def test_a_model_in_which_nothing_is_converted_says_why() -> None:
    for model, message in (
        (
            nn.Sequential(*(_Conv1D() for _ in range(7))),
            r"of test_left_alone\._Conv1D, .* are 0, 1, 2, 3, 4 and 2 more",
        ),
        (nn.Sequential(_OwnLinear(8, 8)), r"of test_left_alone\._OwnLinear, a subclass of torch\.nn\.Linear, are 0"),
        (tied_model(), "another module has the weight, too, of 1"),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()), "there is no torch.nn.Linear; what has parameters is Conv2d"),
        (nn.Sequential(nn.ReLU()), "there is no torch.nn.Linear"),
        (nn.Sequential(torch.jit.script(nn.Linear(2, 2))), "made of torch.nn.Linear, are 0"),
    ):
        with pytest.warns(UserWarning, match=f"^nothing was converted: .*{message}"):
            convert(model)


def test_what_is_left_beside_converted_layers_is_named_in_one_line() -> None:
    model = nn.Sequential(nn.Linear(8, 8), _OwnLinear(8, 8), _Conv1D(), _Conv1D())
    names, said = _packed_and_said(model)
    assert names == {"0"}
    assert said == [
        "convert left alone: of test_left_alone._OwnLinear, a subclass of torch.nn.Linear, are 1; "
        "of test_left_alone._Conv1D, no torch.nn.Linear, are 2, 3."
    ]
    assert _packed_and_said(model, skip=["1", "2", "3"]) == ({"0"}, [])  # asked for


def test_weights_that_are_one_memory_stay_one() -> None:
    model = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8), nn.LazyLinear(8), nn.Linear(8, 8))
    model[3].weight.data = model[0].weight.data  # another object
    names, said = _packed_and_said(model, skip=["2"])
    assert names == {"1"}
    assert said == ["convert left alone: another module has the weight, too, of 3."]
    assert model[3].weight.data_ptr() == model[0].weight.data_ptr()


def test_whole_conversions_say_nothing() -> None:
    model = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 256), nn.LayerNorm(256), nn.Linear(256, 64))
    prune_(model, pattern="2:4", skip=["1"])
    assert _packed_and_said(model) == ({"1", "3"}, [])
    for target in ("cuda", "cpu"):
        assert _packed_and_said(model, target=target) == ({"1", "3"}, [])
    said = _packed_and_said(nn.Sequential(nn.Linear(8, 8)), skip=["0"])
    assert said == (set(), ["nothing was converted: each torch.nn.Linear is one of skip."])


def test_layers_that_are_in_no_module_are_named() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    model.hidden = [nn.Linear(8, 8)]
    names, said = _packed_and_said(model)
    assert names == {"0"}
    assert said == ["convert left alone: outside of the model's modules are Linears in Sequential.hidden."]


# Code that reads weights


class _Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wi, self.wo = nn.Linear(8, 8), nn.Linear(8, 8)
        self.rest = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
        self.blocks = nn.ModuleList(nn.ModuleDict({"out": nn.Linear(8, 8), "in": nn.Linear(8, 8)}) for _ in range(2))
        self._init_weights()

    def _init_weights(self) -> None:
        for layer in (self.wi, self.wo):
            nn.init.ones_(layer.weight)
        nn.init.zeros_(self.wi.weight)  # read where packed layers are not yet


class _Direct(_Base):  # as in T5
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        input = self.wi(input)
        if isinstance(self.wo.weight, torch.Tensor) and input.dtype != self.wo.weight.dtype:
            input = input.to(self.wo.weight.dtype)
        return self.wo(input)


class _InAMethod(_Base):  # as in Mamba
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._fast(self.wi(input))

    def _fast(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(input, self.wo.weight, self.wo.bias)


class _Inherited(_InAMethod):
    def _unused(self) -> torch.Tensor:
        return self.wi.weight


class _ByKey(_Base):  # as in peft
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        for key in self.rest:
            layer = self.rest[key]
            input = layer(input.to(layer.weight.dtype))
        return input


class _InALoop(_Base):  # as in RWKV
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        for at, block in enumerate(self.blocks):
            input = input + block.out.weight.sum() * at if hasattr(block, "out") else input @ block["out"].weight
        return input


class _Items(_Base):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        for _, layer in self.rest.items():
            input = input @ layer.weight
        return input


class _Zipped(_Base):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        for block, _ in zip(self.blocks[:1], (1, 2), strict=False):
            first, second = block, self.wi
            input = input @ first["out"].weight @ second.weight
        return input


class _Asked(_Base):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = getattr(self.wo, "weight", None)
        if hasattr(self.wi, "weight") and getattr(self.blocks, "bias", None) is None:
            input = input * 2
        return input if weight is None else self.wi(input) @ weight


class _OfAKind(_Base):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        for layer in self.rest.values():
            input = layer(input) if isinstance(layer, (nn.Conv1d, torch.nn.Linear)) else input
        if isinstance(self.wo, nn.Linear) and not isinstance(self.wi, nn.Conv1d):
            input = self.wo(input)
        return input


BLOCKS = {"blocks.0.out", "blocks.0.in", "blocks.1.out", "blocks.1.in"}
ALL = {"wi", "wo", "rest.a", "rest.b", *BLOCKS}


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        (_Direct, {"wo"}),
        (_InAMethod, {"wo"}),
        (_Inherited, {"wo"}),
        (_ByKey, {"rest.a", "rest.b"}),
        (_InALoop, BLOCKS),
        (_Items, {"rest.a", "rest.b"}),
        (_Zipped, {"wi", *BLOCKS}),
        (_Asked, {"wi", "wo"}),
        (_OfAKind, {"wo", "rest.a", "rest.b"}),
        (_Base, set()),
    ],
)
def test_layers_whose_weight_is_read_stay_dense(kind: type[_Base], read: set[str]) -> None:
    model, input = kind(), torch.randn(3, 8)
    expected = model(input) if kind is not _Base else None
    names, said = _packed_and_said(model)
    assert names == ALL - read
    assert [text.startswith("convert left alone: the model's code reads the weight of ") for text in said] == (
        [True] if read else []
    )
    if expected is not None:
        assert (model(input) - expected).abs().max() <= 0.05 * expected.abs().max()
    again, said = _packed_and_said(kind(), skip=[*sorted(read)])
    assert again == names
    assert said == []


def test_models_of_transformers_run_as_they_are_converted() -> None:
    transformers = pytest.importorskip("transformers")
    size = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    model = transformers.T5Model(transformers.T5Config(**size, decoder_start_token_id=0)).eval()
    tokens = torch.arange(6).reshape(1, 6)
    with torch.no_grad():
        expected = model(input_ids=tokens, decoder_input_ids=tokens)[0]
        with pytest.warns(UserWarning, match=r"reads the weight of .*\.wo"):
            convert(model)
        assert (model(input_ids=tokens, decoder_input_ids=tokens)[0] - expected).abs().max() < 0.1
