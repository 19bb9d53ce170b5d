"""Code that was written for dense layers meets packed ones: autocast, types, parameters, printing, weights."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from mempool.compress import convert, prune_
from mempool.nn import Int8Linear, SparseInt8Linear, pack_linear


def _layers() -> list[Any]:
    torch.manual_seed(0)
    dense, pruned = nn.Linear(16, 8), prune_(nn.Linear(16, 8), 0.5, pattern="2:4")
    return [
        Int8Linear.from_linear(dense, input_scale=torch.rand(16) + 0.5),
        *(SparseInt8Linear.from_linear(pruned, pattern) for pattern in ("unstructured", "block4", "2:4")),
    ]


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
def test_outputs_under_autocast_are_of_its_type(cast: torch.dtype, given: torch.dtype) -> None:
    dense, input = nn.Linear(16, 8), torch.randn(3, 16).to(given)
    for layer in _layers()[:3]:
        expected = layer(input.to(cast))
        with torch.no_grad(), torch.autocast("cpu", cast):
            assert layer(input).dtype is dense(input).dtype is cast
            assert torch.equal(layer(input), expected)
            torch.zeros(5, 8, dtype=cast).index_copy_(0, torch.arange(3), layer(input))
        assert layer(input).dtype is given
        with torch.autocast("cpu", cast, enabled=False):
            assert layer(input).dtype is given
    double = input.double()
    with torch.autocast("cpu", cast):
        assert _layers()[0](double).dtype is torch.float64  # autocast leaves that alone


def test_autocast_is_seen_by_compiled_code() -> None:
    layer, input = _layers()[0], torch.randn(3, 16)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(input), layer(input))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(input), layer(input))


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.half(),
        lambda layer: layer.double(),
        lambda layer: layer.bfloat16(),
        lambda layer: layer.to(torch.float16),
        lambda layer: layer.type(torch.float64),
        lambda layer: layer.type("torch.HalfTensor"),
        lambda layer: layer.type(torch.int8),
        lambda layer: layer.float(),
    ],
)
def test_no_change_of_type_reaches_the_format(change: Any) -> None:
    dense = change(nn.Linear(16, 8).requires_grad_(False))
    for layer in _layers():
        before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        model = nn.Sequential(layer)
        assert change(model) is model
        for name, buffer in layer.named_buffers():
            assert buffer.dtype is before[name].dtype
            assert torch.equal(buffer, before[name])
        assert next(model.parameters()).dtype is dense.weight.dtype
    with pytest.raises(TypeError, match="floating point"):
        _layers()[0].to(torch.int8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_model_tells_its_type_and_device_by_its_parameters(dtype: torch.dtype) -> None:
    model = convert(prune_(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8, bias=False)).to(dtype), 0.5))
    assert isinstance(model[0], SparseInt8Linear)
    other = nn.Sequential(SparseInt8Linear(16, 8, device="meta"), SparseInt8Linear(8, 8, bias=False, device="meta"))
    assert next(other.parameters()).is_meta
    other.load_state_dict(model.state_dict(), assign=True)
    old = {name: value for name, value in model.state_dict().items() if "placeholder" not in name}
    copied = copy.deepcopy(model)
    copied.load_state_dict(old)  # as written before there was one
    for same in (model, copied, other, pickle.loads(pickle.dumps(model)), model[1].repacked("block4")):
        parameter = next(same.parameters())
        assert (parameter.dtype, parameter.device.type, parameter.requires_grad) == (dtype, "cpu", False)
    assert sum(parameter.numel() for parameter in model.parameters()) == 0
    assert next(model.to("meta").parameters()).is_meta


def test_a_layer_that_was_pickled_without_a_placeholder_gets_one() -> None:
    layer = _layers()[0]
    state = layer.__getstate__() if hasattr(layer, "__getstate__") else dict(layer.__dict__)
    state = {**state, "_parameters": {}}
    old = Int8Linear.__new__(Int8Linear)
    old.__setstate__(state)
    assert next(old.parameters()).dtype is torch.float32


def test_printing_looks_at_no_weight() -> None:
    class Looks(torch.overrides.TorchFunctionMode):
        count = 0

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += getattr(function, "__name__", "") not in ("__get__", "dim")  # attributes
            return function(*args, **(kwargs or {}))

    model = nn.Sequential(*_layers())
    with Looks() as looks:
        text = repr(model)
    assert looks.count == 0
    assert "in_features=16, out_features=8, bias=True, pattern=2:4" in text


def test_code_that_reads_the_weight_is_told_what_helps() -> None:
    model = convert(nn.Sequential(nn.Sequential(nn.Linear(16, 8))))
    layer = model[0][0]
    assert not hasattr(layer, "weight")
    assert getattr(layer, "weight", None) is None
    with pytest.raises(AttributeError, match=r"no attribute 'weight'.*skip=\['0\.0'\]") as caught:
        _ = layer.weight.dtype
    assert caught.value.name == "weight"
    with pytest.raises(AttributeError, match=r"skip=\[its name\]"):
        _ = pack_linear(nn.Linear(4, 4)).weight
    with pytest.raises(AttributeError, match=r"no attribute 'wieght'$"):
        _ = layer.wieght
    pruned = convert(prune_(nn.Sequential(nn.Linear(256, 64)), pattern="2:4"), target="cuda")
    with pytest.raises(AttributeError, match=r"skip=\['0'\]"):
        _ = convert(pruned)[0].weight


@pytest.mark.parametrize("pattern", ["dense", "unstructured", "block4", "2:4"])
@pytest.mark.parametrize("is_on_meta", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_that_is_made_empty_is_zero_until_it_is_loaded(pattern: str, is_on_meta: bool, bias: bool) -> None:
    dense = prune_(nn.Sequential(nn.Linear(72, 40, bias=bias)), 0.5, pattern="2:4")[0]
    scale = torch.linspace(1, 2, 72)
    if pattern == "dense":
        layer: Int8Linear | SparseInt8Linear = Int8Linear.from_linear(dense, scale)
    else:
        layer = SparseInt8Linear.from_linear(dense, pattern, scale)
    state = {name: buffer.clone() for name, buffer in layer.state_dict().items()}
    expected = layer.dequantize()
    model = nn.Sequential(layer, nn.Linear(40, 2))
    if is_on_meta:
        model.to("meta")
        for packed_or_dense in model:
            with pytest.raises(NotImplementedError, match=r"no data! Please use torch\.nn\.Module\.to_empty"):
                packed_or_dense.to("cpu")
    kept = [torch.full_like(buffer, 77) for buffer in state.values() for _ in range(8)]
    del kept  # memory that is given out anew has these
    assert model.to_empty(device="cpu")[0] is layer
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert torch.count_nonzero(layer.dequantize()) == 0
    if pattern != "2:4":
        output = layer(torch.randn(3, 72))
        assert torch.equal(output, torch.zeros(3, 40))
    assert (layer.bias is not None) == bias
    layer.load_state_dict(state)
    assert torch.equal(layer.dequantize(), expected)
    assert not is_on_meta or layer.to("meta").get_buffer("format").is_meta
