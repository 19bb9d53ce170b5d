"""Compression under other default types and devices of torch, and of models that make tensors of other types."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from small_models import small_model, token_batches
from torch import nn

from mempool.compress import convert, distill_, prune_
from mempool.compress.distilling import relative_error
from mempool.compress.methods import sparsegpt
from mempool.nn import Int8Linear, SparseInt8Linear, pack_linear


@contextmanager
def _default(other: Any) -> Iterator[None]:
    """What `torch.zeros(3)` makes is not what a model has: on a GPU that is so for each model there."""
    if other == "meta":
        with torch.device("meta"):
            yield
        return
    torch.set_default_dtype(other)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODEL, BATCHES = small_model(), token_batches()
OTHERS = pytest.mark.parametrize("other", ["meta", torch.bfloat16, torch.float64])


def _compressed(method: str, pattern: str, target: str) -> nn.Module:
    model = prune_(copy.deepcopy(MODEL), 0.5, method, pattern, calibration=BATCHES)
    return convert(model, calibration=BATCHES, smooth=True, target=target)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("method", "pattern"), [("magnitude", "unstructured"), ("wanda", "block4"), ("sparsegpt", "2:4")]
)
@OTHERS
def test_a_default_changes_nothing(method: str, pattern: str, target: str, other: Any) -> None:
    expected = _compressed(method, pattern, target).state_dict()
    with _default(other):
        state = _compressed(method, pattern, target).state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert tensor.dtype is expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


@OTHERS
def test_packed_layers_are_where_their_weight_is(other: Any) -> None:
    linear = copy.deepcopy(MODEL[1])
    with _default(other):
        layers: list[Any] = [pack_linear(linear), SparseInt8Linear.from_linear(linear), Int8Linear.from_linear(linear)]
        layers += [layers[1].repacked("block4"), layers[1].for_target("cuda"), copy.deepcopy(layers[0])]
        for layer in layers:
            assert {tensor.device.type for tensor in layer.state_dict().values()} == {"cpu"}
            layer.load_state_dict(layer.state_dict())


@OTHERS
def test_the_loss_of_distilling_follows_the_outputs(other: Any) -> None:
    output, target, mask = torch.full((2, 3), 2.0), torch.ones(2, 3), torch.tensor([1, 0])
    with _default(other):
        assert float(relative_error(output, target, None)) == 1
        assert float(relative_error(output, target, {"attention_mask": mask})) == 1
        # A square of 16 bits would be infinite.
        assert float(relative_error(output.half() * 1000, target.half() * 1000, None)) == 1
        assert relative_error(output.double(), target, None).dtype is torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_other_types_are_pruned_converted_and_distilled(dtype: torch.dtype) -> None:
    teacher = small_model().to(dtype)
    model = prune_(copy.deepcopy(teacher), 0.5, "sparsegpt", calibration=token_batches(), keep_masks=True)
    distill_(model, teacher, token_batches(), epochs=1)
    assert model[4].weight.dtype is dtype
    assert convert(model)(token_batches()[0]).dtype is dtype


def test_autocast_around_pruning_changes_nothing() -> None:
    weight, hessian = MODEL[1].weight.detach(), torch.eye(64) + 0.1
    expected = sparsegpt.prune(weight, hessian, 0.5, "unstructured")
    with torch.autocast("cpu", torch.bfloat16):
        pruned = sparsegpt.prune(weight, hessian, 0.5, "unstructured")
    assert all(torch.equal(got, wanted) for got, wanted in zip(pruned, expected, strict=True))


# nn.TransformerEncoder


def _encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=True).eval()


PADDED = {
    "src": torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2)),
    "src_key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2]),
}
NOT_PADDED = {"src": PADDED["src"]}


@pytest.mark.parametrize("batch", [PADDED, NOT_PADDED])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_an_encoder_is_calibrated_with_a_padding_mask(
    method: str, batch: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mempool.compress.methods.sparsegpt.HESSIAN_BYTES", 1
    )  # one layer at a time: others have no hook
    encoder = _encoder()
    prune_(encoder, 0.5, method, calibration=[batch])
    assert encoder.use_nested_tensor
    assert {float((layer.linear1.weight == 0).float().mean()) for layer in encoder.layers} == {0.5}
    expected = encoder(**batch)
    convert(encoder, calibration=[batch], smooth=True)
    assert not encoder.use_nested_tensor
    assert isinstance(encoder.layers[1].linear2, (Int8Linear, SparseInt8Linear))
    kept = ~PADDED["src_key_padding_mask"]
    assert (encoder(**batch) - expected)[kept].abs().max() < 0.05 * expected.abs().max()


def test_an_encoder_is_what_it_was_when_calibration_fails() -> None:
    encoder = _encoder()
    for batches in ([PADDED, {"source": 1}], []):
        with pytest.raises((TypeError, ValueError)):
            prune_(encoder, 0.5, "wanda", calibration=batches)
        assert encoder.use_nested_tensor
        assert torch.backends.mha.get_fastpath_enabled()


def test_nested_tensors_are_calibration_data_too() -> None:
    rows = [torch.randn(3, 8), torch.randn(5, 8)]
    nested, plain = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))
    plain.load_state_dict(nested.state_dict())
    prune_(nested, 0.5, "wanda", calibration=[torch.nested.nested_tensor(rows)])
    prune_(plain, 0.5, "wanda", calibration=[torch.cat(rows)])
    assert torch.equal(nested[0].weight, plain[0].weight)


# Arguments of another type


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": "half"}, "sparsity is a number, 0 to 1, not 'half'"),
        ({"sparsity": None}, "sparsity is a number"),
        ({"sparsity": True}, "sparsity is a number"),
        ({"sparsity": [0.5]}, "sparsity is a number"),
        ({"method": "wanda", "calibration": torch.ones(2, 8)}, "calibration is a list of batches.* not Tensor"),
        ({"method": "wanda", "calibration": {"input": torch.ones(2, 8)}}, "calibration is a list .* not dict"),
        ({"method": "wanda", "calibration": 3}, "calibration is a list of batches.* not int"),
        ({"skip": 3}, "skip is a list of names"),
        ({"skip": None}, "skip is a list of names"),
        ({"skip": [nn.Linear(2, 2)]}, "skip is a list of names"),
        ({"model": {"0": nn.Linear(8, 8)}}, r"model is a torch\.nn\.Module, not dict"),
    ],
)
def test_pruning_says_what_type_it_takes(arguments: dict[str, Any], message: str) -> None:
    model = arguments.pop("model", None) or nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(TypeError, match=message):
        prune_(model, **arguments)


def test_converting_and_learning_say_what_type_they_take() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    batches = [torch.randn(2, 8)]
    with pytest.raises(TypeError, match=r"model is a torch\.nn\.Module, not Tensor"):
        convert(torch.ones(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="calibration is a list of batches"):
        convert(model, calibration=batches[0], smooth=True)
    with pytest.raises(TypeError, match="skip is a list"):
        convert(model, skip=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'int8', not 8"):
        convert(model, weights=8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'cpu' or 'cuda', not 3"):
        convert(model, target=3)  # type: ignore[arg-type]
    for arguments, error, message in (
        ({"teacher": None}, TypeError, "teacher is a torch.nn.Module, not NoneType"),
        ({"batches": batches[0]}, TypeError, "batches is a list of batches"),
        ({"epochs": "4"}, TypeError, "epochs is a whole number"),
        ({"epochs": 0}, ValueError, "epochs is at least 1, not 0"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate is a number, not 'fast'"),
        ({"loss": "mse"}, TypeError, "loss a function"),
    ):
        with pytest.raises(error, match=message):
            distill_(**{"model": model, "teacher": model, "batches": batches, **arguments})  # type: ignore[arg-type]
    for make in (Int8Linear, SparseInt8Linear):
        with pytest.raises(TypeError, match="whole numbers, not '8' and 8"):
            make("8", 8)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="`input_scale` is a tensor of 8, not list"):
            make.from_linear(model[0], input_scale=[1.0] * 8)  # type: ignore[arg-type]
    assert type(model[0]) is nn.Linear
