"""`load` takes all that the model has from the file: missing and additional tensors, their names and their types."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_states import skeleton, state_of
from small_models import loaded
from torch import nn
from torch.nn.utils import prune

from mempool.compress import LoadReport, convert, load, save
from mempool.nn import Int8Linear

safetensors = pytest.importorskip("safetensors.torch")


def _normalized() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Embedding(9, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


# What is missing, and what is too much


@pytest.mark.parametrize("build", [_normalized, lambda: skeleton(_normalized)])
@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize(
    "name",
    ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.num_batches_tracked", "2.weight", "2.bias"],
)
def test_each_parameter_and_buffer_is_asked_for(
    file: Path, build: Callable[[], nn.Module], weights: str | None, name: str
) -> None:
    state = _normalized().state_dict()
    del state[name]
    safetensors.save_file(state, file)
    model = build()
    before = state_of(model)
    with pytest.raises(ValueError, match=f"the checkpoint has no '{name}': missing='keep'"):
        load(model, file, weights=weights)
    assert state_of(model) == before


def test_a_prefix_that_no_name_has_is_named_beside_those_that_there_are(file: Path) -> None:
    save(_normalized(), file)
    with pytest.raises(ValueError, match=r"begins with 'model\.'; they are 0\.weight"):
        load(_normalized(), file, prefix="model.")
    safetensors.save_file({f"model.{name}": value for name, value in _normalized().state_dict().items()}, file)
    with pytest.raises(ValueError, match=r"no '0\.weight', .* and 3 more: .*prefix"):
        load(_normalized(), file)
    model = nn.Sequential(*_normalized().children())
    nn.init.zeros_(model[0].weight)
    assert load(model, file, weights=None, prefix="model.") == LoadReport((), ())
    assert torch.equal(model[0].weight, _normalized()[0].weight)


def test_what_is_missing_is_kept_where_that_is_asked_for(file: Path) -> None:
    encoder = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    save(nn.ModuleDict({"encoder": encoder, "pooler": nn.Linear(8, 8)}), file)
    model = nn.ModuleDict({"encoder": copy.deepcopy(encoder), "head": nn.Linear(8, 3)})
    model.register_buffer("step", torch.tensor(4))
    head, before = model["head"], state_of(model["head"])
    report = load(model, file, missing="keep")
    assert report == LoadReport(("step", "head.weight", "head.bias"), ("pooler.bias", "pooler.weight"))
    assert isinstance(model["encoder"][0], Int8Linear)
    assert model["head"] is head
    assert state_of(head) == before
    assert int(model.step) == 4


def test_a_bias_that_is_missing_is_kept_beside_a_weight_that_is_packed(file: Path) -> None:
    dense = nn.Sequential(nn.Linear(8, 8, bias=False))
    for source in (dense, convert(copy.deepcopy(dense))):
        save(source, file)
        model = nn.Sequential(nn.Linear(8, 8))
        bias = model[0].bias.detach().clone()
        with pytest.raises(ValueError, match=r"no '0\.bias'"):
            load(model, file)
        assert load(model, file, missing="keep") == LoadReport(("0.bias",), ())
        assert isinstance(model[0], Int8Linear)
        assert torch.equal(model[0].bias, bias)


def test_a_masked_bias_is_packed_with_its_mask(file: Path) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8))
        prune.l1_unstructured(model[0], "bias", 4)
        return model

    source, model = build(), build()
    with torch.no_grad():
        source[0].bias_orig.add_(1)  # the bias is made anew at the next call
    save(source, file)
    expected = source[0].bias_orig * source[0].bias_mask
    for other in (nn.Sequential(nn.Linear(8, 8)), model):
        assert load(other, file) == LoadReport((), ())
        assert torch.equal(other[0].bias, expected)
    save(nn.Sequential(nn.Linear(8, 8, bias=False)), file)
    with pytest.raises(ValueError, match=r"no '0\.bias_orig', '0\.bias_mask'"):
        load(source, file)
    assert load(source, file, missing="keep") == LoadReport(("0.bias_orig", "0.bias_mask"), ())
    assert torch.equal(source[0].bias, expected)


def test_nothing_is_kept_on_the_meta_device(file: Path) -> None:
    save(nn.Sequential(nn.Linear(8, 8, bias=False)), file)
    model = skeleton(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)))
    with pytest.raises(ValueError, match=r"no '1\.weight', '1\.bias', '0\.bias', and on the meta device"):
        load(model, file, missing="keep")
    with pytest.raises(ValueError, match="'error' or 'keep', not 'ignore'"):
        load(model, file, missing="ignore")


def test_a_packed_model_is_kept_or_refused_as_a_whole_layer(file: Path) -> None:
    save(nn.Sequential(nn.Linear(8, 8)), file)
    model = convert(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    for missing in ("error", "keep"):
        with pytest.raises(ValueError, match="layer '0' of the model is packed"):
            load(model, file, missing=missing)
    save(nn.Sequential(nn.Linear(8, 8)), file)
    other = nn.Sequential(nn.Linear(8, 8), model[1])
    report = load(other, file, missing="keep", weights=None)
    assert set(report.kept) == {"1.format", "1.panels", "1.sums", "1.scales", "1.bias", "1.placeholder"}


def test_what_the_file_has_beyond_the_model_is_reported(file: Path) -> None:
    save(convert(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, bias=False))), file)
    report = load(nn.Sequential(nn.Linear(8, 8)), file)
    assert report == LoadReport((), ("1.format", "1.panels", "1.placeholder", "1.scales", "1.sums"))
    safetensors.save_file({"a.0.weight": torch.ones(2, 2), "b.0.weight": torch.ones(2, 2)}, file)
    report = load(nn.Sequential(nn.Linear(2, 2, bias=False)), file, prefix="a.")
    assert report.unused == ("b.0.weight",)


def test_buffers_that_the_model_makes_itself_are_not_asked_for(file: Path) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 2))
        model[0].register_buffer("table", torch.arange(3.0), persistent=False)
        return model

    save(build(), file)
    assert load(build(), file, weights=None) == LoadReport((), ())
    state = {**build().state_dict(), "0.table": torch.zeros(3)}  # as some older files have it
    safetensors.save_file(state, file)
    model = build()
    assert load(model, file, weights=None) == LoadReport((), ("0.table",))
    assert model[0].table.tolist() == [0, 1, 2]
    with torch.device("meta"):
        model = build()
    assert load(model, file, weights=None) == LoadReport((), ())  # where it has no values, they come from the file
    assert model[0].table.tolist() == [0, 0, 0]


def test_names_of_one_tensor_have_one_value(file: Path) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4, bias=False))
        model[1].weight = model[0].weight
        return model

    one, other = torch.randn(4, 4), torch.randn(4, 4)
    safetensors.save_file({"0.weight": one, "1.weight": one.clone()}, file)
    for model in (build(), skeleton(build)):
        assert load(model, file) == LoadReport((), ())
        assert torch.equal(model[1].weight, one)
    safetensors.save_file({"0.weight": one, "1.weight": other}, file)
    with pytest.raises(ValueError, match=r"'0\.weight' and '1\.weight' are one tensor in the model"):
        load(build(), file)


# Types

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_OTHERS = (
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
)


def _with_buffer(dtype: torch.dtype) -> nn.Module:
    model = nn.Module()
    model.register_buffer("value", torch.ones(4).to(dtype))
    return model


@pytest.mark.parametrize("stored", [*_FLOATS, *_OTHERS])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_only_floats_are_cast(file: Path, stored: torch.dtype, device: str) -> None:
    save(_with_buffer(stored), file)
    for dtype in (*_FLOATS, *_OTHERS):
        model = _with_buffer(dtype).to(device)
        if dtype == stored or (dtype in _FLOATS and stored in _FLOATS):
            load(model, file)
            assert model.value.dtype == dtype
            assert model.value.to(torch.float32).tolist() == [1, 1, 1, 1]
        else:
            with pytest.raises(ValueError, match=rf"'value' is {stored} in the checkpoint, and {dtype} in the model"):
                load(model, file)


@pytest.mark.parametrize("dtype", _OTHERS)
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_quantized_weights_are_not_packed(file: Path, dtype: torch.dtype, part: str) -> None:
    state = nn.Linear(4, 4).state_dict()
    state[part] = state[part].to(dtype)
    safetensors.save_file({f"0.{name}": value for name, value in state.items()}, file)
    with pytest.raises(ValueError, match=rf"layer '0': '0\.{part}' in the checkpoint is {dtype}, quantized already"):
        load(nn.Sequential(nn.Linear(4, 4)), file)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_that_the_model_cannot_hold_are_refused(file: Path, dtype: torch.dtype) -> None:
    values = torch.full((4,), torch.finfo(torch.float32).max)
    safetensors.save_file({"value": values}, file)
    with pytest.raises(ValueError, match="'value' has values in the checkpoint that"):
        load(_with_buffer(dtype), file)
    values.fill_(-float("inf"))  # that every float type has
    safetensors.save_file({"value": values}, file)
    assert loaded(_with_buffer(dtype), file).value.tolist() == [-float("inf")] * 4
