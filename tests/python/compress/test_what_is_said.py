"""Warnings of `convert` and `load` are true. As errors they are raised before any change, as are errors of names."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_model, token_batches
from torch import nn

from mempool.compress import LoadReport, convert, load, meta_parameters, prune_, save
from mempool.nn import SparseInt8Linear

safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


class _OwnLinear(nn.Linear):
    pass


def _odd() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), _OwnLinear(8, 8))


def _seen(model: nn.Module) -> tuple[list[int], dict[str, tuple[int, list[Any]]]]:
    """The modules of a model, its tensors and what is in them."""
    state = model.state_dict(keep_vars=True)
    tensors = {name: (id(tensor), [] if tensor.is_meta else tensor.tolist()) for name, tensor in state.items()}
    return [id(module) for module in model.modules()], tensors


def _said(call: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


# Warnings that are errors


@pytest.mark.parametrize("build", [_odd, lambda: nn.Sequential(_OwnLinear(8, 8)), lambda: nn.Sequential(nn.ReLU())])
@pytest.mark.parametrize("how", [{}, {"calibration": [torch.ones(2, 8)], "smooth": True}])
def test_converting_with_warnings_as_errors_changes_nothing(build: Callable[[], nn.Module], how: Any) -> None:
    model = build()
    before = _seen(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"convert left alone|nothing was converted"):
            convert(model, **how)
    assert _seen(model) == before


@pytest.mark.parametrize("how", [{}, {"sparsity": 0.5}, {"sparsity": 0.5, "method": "wanda"}])
@pytest.mark.parametrize("is_on_meta", [False, True])
def test_loading_with_warnings_as_errors_changes_nothing(file: Path, how: dict[str, Any], is_on_meta: bool) -> None:
    source = _odd()
    with torch.no_grad():
        source[0].weight.add_(1)
    save(source, file)
    if is_on_meta:
        with meta_parameters():
            model = _odd()
    else:
        model = _odd()
    before = _seen(model)
    if "method" in how:
        how = {**how, "calibration": [torch.ones(2, 8)]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"load left alone: of .*_OwnLinear"):
            load(model, file, **how)
    assert _seen(model) == before


class _Warning(nn.Module):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        warnings.warn("of the model's own", stacklevel=1)
        return input


def test_a_warning_of_the_model_under_calibration_changes_nothing() -> None:
    sparse = SparseInt8Linear.from_linear(prune_(nn.Sequential(nn.Linear(8, 8)), 0.5, pattern="2:4")[0], "2:4")
    model = nn.Sequential(nn.Linear(8, 8), _Warning(), nn.Sequential(sparse), nn.Linear(8, 8))
    before = _seen(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="of the model's own"):
            convert(model, calibration=[torch.ones(2, 8)], smooth=True)
    assert _seen(model) == before


def test_whole_calls_say_nothing(file: Path) -> None:
    save(small_model(), file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(small_model(), calibration=token_batches(), smooth=True)
        load(small_model(), file, sparsity=0.5, method="sparsegpt", calibration=token_batches())
        save(convert(small_model()), file)
        load(small_model(), file)


# What loading says of layers that stay dense


def test_what_loading_leaves_is_named_with_its_reason(file: Path) -> None:
    save(_odd(), file)
    kind = r"of test_what_is_said._OwnLinear, a subclass of torch.nn.Linear, are 1"
    assert _said(lambda: load(_odd(), file)) == [f"load left alone: {kind}."]
    assert _said(lambda: load(_odd(), file, skip=["0"])) == [f"nothing was packed: {kind}."]
    assert _said(lambda: load(_odd(), file, skip=["*"])) == ["nothing was packed: each torch.nn.Linear is one of skip."]
    assert _said(lambda: load(_odd(), file, weights=None)) == []


def test_layers_that_the_file_has_packed_are_not_said_to_be_left(file: Path) -> None:
    source = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8, bias=False))
    save(convert(source), file)
    tied = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8, bias=False))
    tied[1].weight = tied[0].weight
    assert _said(lambda: load(tied, file)) == []
    assert torch.equal(tied[1].panels, source[1].panels)


def test_heads_that_are_kept_are_named_where_nothing_is_packed(file: Path) -> None:
    save(nn.ModuleDict({"norm": nn.LayerNorm(8)}), file)
    model = nn.ModuleDict({"norm": nn.LayerNorm(8), "head": nn.Linear(8, 8)})
    assert _said(lambda: load(model, file, missing="keep")) == [
        "nothing was packed: the checkpoint has no weight for head."
    ]
    encoder = nn.ModuleDict({"encoder": nn.Linear(8, 8), "head": nn.Linear(8, 8)})
    save(nn.ModuleDict({"encoder": nn.Linear(8, 8)}), file)
    assert _said(lambda: load(encoder, file, missing="keep")) == []  # the report says it


# Files of which nothing fits


def _bert() -> nn.Module:
    return nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), "head": nn.Linear(8, 2)})


@pytest.mark.parametrize("missing", ["error", "keep"])
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("is_on_meta", [False, True])
@pytest.mark.parametrize(
    ("wrap", "prefix", "advice"),
    [
        ("bert", "brt.", r"none of its names begins with 'brt\.'; they are .*\. prefix='bert\.' fits\.$"),
        ("bert", "", r"its names begin with 'bert\.'\. prefix='bert\.' fits\.$"),
        ("bert", "bert", r"its names begin with 'bert\.'\. prefix='bert\.' fits\.$"),
        ("", "model.", r"none of its names begins with 'model\.'; they are .*\. prefix='' fits\.$"),
    ],
)
def test_a_prefix_by_which_nothing_fits_is_refused_with_one_that_does(
    file: Path, missing: str, is_packed: bool, is_on_meta: bool, wrap: str, prefix: str, advice: str
) -> None:
    source = convert(_bert()) if is_packed else _bert()
    save(nn.ModuleDict({wrap: source}) if wrap else source, file)
    if is_on_meta:
        with meta_parameters():
            model = _bert()
    else:
        model = _bert()
    before = _seen(model)
    with pytest.raises(ValueError, match=f"^the checkpoint has no 'encoder.*{advice}"):
        load(model, file, prefix=prefix, missing=missing)
    assert _seen(model) == before
    assert load(model, file, prefix=f"{wrap}." if wrap else "", missing=missing) == LoadReport((), ())


def test_a_model_that_is_a_part_of_what_was_given_is_named(file: Path) -> None:
    save(_bert(), file)
    wrapped = nn.ModuleDict({"module": nn.ModuleDict({"bert": _bert()})})
    with pytest.raises(
        ValueError, match=r"'encoder\.', 'head\.', and .*load into model\.get_submodule\('module\.bert'\)"
    ):
        load(wrapped, file, missing="keep")
    load(wrapped.get_submodule("module.bert"), file, missing="keep")


def test_files_of_another_model_are_refused_with_what_they_have(file: Path) -> None:
    for names, prefix, message in (
        (["vision.conv", "vision.norm", "text.conv"], "visn.", r"'visn\.'; .*The nearest prefix is 'vision\.'\.$"),
        (["vision.conv", "text.conv"], "", r"begin with 'text\.', 'vision\.'\. prefix is what they begin with\.$"),
        ([f"{i}.a.encoder" for i in range(9)], "", r"begin with '0\.', '1\.', '2\.', '3\.', '4\.' and 4 more\. prefix"),
        (["0.gamma"], "", r"begin with '0\.'\. prefix is"),
    ):
        safetensors.save_file({name: torch.ones(2) for name in names}, file)
        for missing in ("error", "keep"):
            with pytest.raises(ValueError, match=message):
                load(nn.Sequential(nn.Linear(2, 2)), file, prefix=prefix, missing=missing)
    safetensors.save_file({}, file)
    with pytest.raises(ValueError, match=r"no '0\.weight', '0\.bias': it has no tensors\.$"):
        load(nn.Sequential(nn.Linear(2, 2)), file, missing="keep")
