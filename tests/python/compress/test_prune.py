"""Pruning by each method and pattern, and fine-tuning of a pruned model."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import changed_model, linears, share_of_zeros, small_model, token_batches
from torch import nn
from torch.nn.utils import prune as torch_prune

from mempool.compress import convert, distill_, prune_
from mempool.compress.distilling import relative_error
from mempool.nn import Int8Linear, SparseInt8Linear


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(("pattern", "sparsity"), [("unstructured", 0.3), ("2:4", 0.5), ("block4", 0.75)])
def test_so_many_weights_go_in_the_pattern_asked_for(method: str, pattern: str, sparsity: float) -> None:
    model = small_model()
    assert prune_(model, sparsity, method, pattern, calibration=token_batches()) is model
    for layer in linears(model):
        assert share_of_zeros(layer) == pytest.approx(sparsity, abs=0.01)
        groups = (layer.weight != 0).view(layer.out_features, -1, 4).sum(dim=-1)
        if pattern == "2:4":
            assert (groups == 2).all()
        if pattern == "block4":
            assert set(groups.unique().tolist()) == {0, 4}
        assert not torch_prune.is_pruned(layer)
        assert "weight" in dict(layer.named_parameters())


def test_magnitude_takes_the_smallest_and_leaves_the_others_as_they_are() -> None:
    layer = nn.Linear(4, 2, bias=False)
    weight = torch.tensor([[0.1, -5.0, 0.3, 4.0], [-0.2, 7.0, 0.4, -6.0]])
    layer.weight.data.copy_(weight)
    prune_(layer, 0.5)
    assert torch.equal(layer.weight.data, torch.where(weight.abs() > 1, weight, 0.0))


def test_wanda_weighs_by_the_inputs_and_compares_within_an_output() -> None:
    layer = nn.Linear(4, 2, bias=False)
    layer.weight.data.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.4, 0.3, 0.2, 0.1]]))
    inputs = torch.tensor([[10.0, 0.1, 10.0, 0.1], [-10.0, 0.1, 10.0, 0.1]])
    prune_(layer, 0.5, "wanda", calibration=[inputs])
    assert torch.equal(layer.weight.data, torch.tensor([[1.0, 0.0, 3.0, 0.0], [0.4, 0.0, 0.2, 0.0]]))


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block4"])
def test_what_looks_at_the_data_loses_less(pattern: str) -> None:
    torch.manual_seed(3)
    layer = nn.Linear(128, 96, bias=False)
    inputs = torch.randn(512, 32) @ torch.randn(32, 128) * torch.logspace(-1, 1, 128)
    expected = layer(inputs).detach()
    errors = {}
    for method in ("magnitude", "wanda", "sparsegpt"):
        pruned = prune_(copy.deepcopy(layer), 0.5, method, pattern, calibration=[inputs])
        errors[method] = float((pruned(inputs) - expected).square().mean().detach())
    assert errors["sparsegpt"] < 0.7 * errors["wanda"] < 0.7 * errors["magnitude"]


def test_an_input_that_is_never_used_does_not_break_sparsegpt() -> None:
    layer = nn.Linear(16, 8)
    inputs = torch.randn(64, 16)
    inputs[:, 3] = 0
    prune_(layer, 0.25, "sparsegpt", calibration=[inputs])
    assert layer.weight.isfinite().all()
    assert (layer.weight[:, 3] == 0).all()


def test_hessians_are_gathered_in_passes_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from mempool.compress.methods import sparsegpt

    monkeypatch.setattr(sparsegpt, "HESSIAN_BYTES", 1)
    passes = []
    observe = sparsegpt.observe
    monkeypatch.setattr(sparsegpt, "observe", lambda *arguments: (passes.append(1), observe(*arguments)))
    prune_(small_model(), 0.5, "sparsegpt", calibration=iter(token_batches()))
    assert len(passes) == 2


def test_kept_masks_hold_while_the_model_is_trained() -> None:
    model = small_model()
    prune_(model, 0.5, keep_masks=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(token_batches()[0]).square().mean().backward()
    optimizer.step()
    for layer in linears(model):
        assert share_of_zeros(layer) == pytest.approx(0.5, abs=0.01)
    converted = convert(model)
    assert isinstance(converted[1], SparseInt8Linear)
    assert converted[1].density == pytest.approx(0.5, abs=0.02)


def test_skipped_layers_stay() -> None:
    model = small_model()
    prune_(model, 0.5, skip=["4"])
    assert share_of_zeros(model[4]) == 0
    assert share_of_zeros(model[1]) == pytest.approx(0.5, abs=0.01)
    convert(model, skip=["1*"])
    assert type(model[1]) is nn.Linear
    assert isinstance(model[4], Int8Linear)
    nested = convert(nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4)), skip=["0"])
    assert type(nested[0][0]) is nn.Linear
    assert isinstance(nested[1], Int8Linear)


def test_masks_that_were_kept_give_way_to_new_ones() -> None:
    torch.manual_seed(6)
    layer = nn.Linear(64, 64, bias=False)
    inputs = torch.randn(256, 16) @ torch.randn(16, 64)
    expected = layer(inputs).detach()
    again = copy.deepcopy(layer)
    prune_(prune_(again, 0.3, keep_masks=True), 0.5, "sparsegpt", calibration=[inputs], keep_masks=True)
    once = prune_(prune_(copy.deepcopy(layer), 0.3), 0.5, "sparsegpt", calibration=[inputs])
    assert torch.equal(again(inputs), once(inputs))
    optimizer = torch.optim.SGD(again.parameters(), lr=0.01)
    (again(inputs) - expected).square().mean().backward()
    optimizer.step()
    packed = Int8Linear.from_linear(again)  # before any forward
    assert (packed(inputs) - again(inputs)).abs().max() < 0.05 * expected.abs().max()


def test_hooks_are_not_lost_silently() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda module, inputs, output: output * 100)
    with pytest.raises(ValueError, match="layer '0' has forward hooks"):
        convert(model)


def test_a_compiled_model_is_calibrated_too() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    rows = torch.randn(5, 8)
    torch.compile(model, backend="eager")(rows)
    prune_(model, 0.5, "wanda", calibration=[rows])
    assert share_of_zeros(model[0]) == 0.5


def test_calibration_leaves_no_trace() -> None:
    model = small_model().train()
    model[3].eval()
    prune_(model, 0.5, "wanda", calibration=token_batches())
    assert [module.training for module in model] == [True, True, True, False, True]
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_batches_come_in_the_forms_that_models_take(kind: type) -> None:
    layer = nn.Linear(8, 8)
    rows = torch.randn(5, 8)
    prune_(layer, 0.5, "wanda", calibration=[{"input": rows} if kind is dict else kind([rows])])
    assert share_of_zeros(layer) == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.5}, "0 to 1"),
        ({"sparsity": float("nan")}, "0 to 1"),
        ({"method": "random"}, "magnitude, wanda, sparsegpt"),
        ({"pattern": "4:8"}, "unstructured, 2:4, block4"),
        ({"pattern": "2:4", "sparsity": 0.7}, "sparsity of 0.5"),
        ({"method": "wanda"}, "needs calibration"),
        ({"method": "wanda", "calibration": []}, "has no batch"),
        ({"method": "sparsegpt", "calibration": [torch.zeros(1, 0, dtype=torch.long)]}, "reached 1, 4"),
        ({"skip": ["decoder.*"]}, "no layer's name matches 'decoder"),
        ({"model": changed_model(lambda model: model[4].weight.fill_(float("nan")))}, "layer '4'"),
        ({"model": nn.Sequential(nn.Linear(6, 4)), "pattern": "2:4"}, "layer '0' has 6 inputs"),
    ],
)
def test_what_cannot_be_pruned_is_refused(arguments: dict[str, object], message: str) -> None:
    model = arguments.pop("model", None) or small_model()
    with pytest.raises(ValueError, match=message):
        prune_(model, **arguments)  # type: ignore[arg-type]


def test_a_layer_that_no_batch_reaches_is_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})
    model.forward = lambda input: model["used"](input)  # type: ignore[assignment, method-assign]
    with pytest.raises(ValueError, match="reached unused"):
        prune_(model, 0.5, "wanda", calibration=[torch.randn(2, 4)])
    with pytest.raises(TypeError, match="not str"):
        prune_(model, 0.5, "wanda", calibration=["text"])
    with pytest.raises(TypeError, match=r"\['used'\]"):
        prune_(model, 0.5, skip="used")


def test_a_pruned_model_learns_from_its_teacher_and_keeps_its_zeros() -> None:
    teacher = small_model()
    model = prune_(copy.deepcopy(teacher), 0.5, keep_masks=True)
    fixed = model[0].weight.clone()

    def error() -> float:
        with torch.no_grad():
            return sum(float(relative_error(model(b), teacher(b), b)) for b in token_batches())

    before = error()
    assert distill_(model, teacher, token_batches(), epochs=20) is model
    assert error() < 0.5 * before
    assert torch.equal(model[0].weight, fixed)
    for layer in linears(model):
        assert share_of_zeros(layer) == pytest.approx(0.5, abs=0.01)
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="no batch"):
        distill_(model, teacher, [])
    with pytest.raises(ValueError, match="no parameter"):
        distill_(small_model().requires_grad_(False), teacher, token_batches())


def test_tokens_that_are_padding_teach_nothing() -> None:
    target = torch.ones(2, 3, 4)
    batch = {"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    output = target.clone()
    output[0, 2] = output[1, 1:] = 50.0
    assert relative_error((output,), {"hidden": target}, batch) == 0
    output[0, 0] = 2.0
    assert float(relative_error(output, target, batch)) == pytest.approx(1 / 3)
