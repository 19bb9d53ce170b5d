"""`load` fills tensors in place where it can, takes memory only where it must, and replaces only Linears."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from model_states import header_of, skeleton
from small_models import loaded, packed_model, small_model, token_batches
from torch import nn

import mempool
from mempool.compress import convert, load, save
from mempool.nn import Int8Linear, SparseInt8Linear

safetensors = pytest.importorskip("safetensors.torch")


class _Marked(nn.Parameter):
    pass


def test_parameters_stay_the_objects_that_they_are(file: Path) -> None:
    source = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    nn.init.normal_(source[1].weight)
    save(source, file)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[0].weight = _Marked(torch.zeros(4, 4).t())
    model[0].weight.lr_scale = 0.1
    model[0].bias.requires_grad_(False)
    seen: list[torch.Tensor] = []
    model[0].weight.register_hook(seen.append)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    alias, running = model[0].weight.data_ptr(), model[1].running_mean
    parameters = list(model.parameters())
    load(model, file, weights=None)
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    assert model[1].running_mean is running
    weight = model[0].weight
    assert (type(weight), weight.lr_scale, weight.data_ptr(), weight.stride()) == (_Marked, 0.1, alias, (1, 4))
    assert not model[0].bias.requires_grad
    assert torch.equal(weight, source[0].weight)
    model.eval()(torch.ones(2, 4)).sum().backward()
    assert len(seen) == 1
    optimizer.step()
    assert not torch.equal(weight, source[0].weight)


def test_parameters_on_meta_keep_their_class_and_attributes(file: Path) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(3, 5, 2))
        weight = _Marked(torch.randn(4, 4), requires_grad=False)
        weight.lr_scale = 0.1
        model[0].weight = weight
        model[1].to(memory_format=torch.channels_last)
        return model

    source = build()
    save(source, file)
    model = skeleton(build)
    model[1].weight.data = model[1].weight.data.to(memory_format=torch.channels_last)
    assert type(model[0].weight) is _Marked
    load(model, file, weights=None)
    weight = model[0].weight
    assert (type(weight), weight.lr_scale, weight.requires_grad) == (_Marked, 0.1, False)
    assert torch.equal(weight, source[0].weight)
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[1].weight.requires_grad
    assert torch.equal(model[1].weight, source[1].weight)


def test_memory_is_taken_for_what_was_on_meta_alone(enabled: None, file: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Embedding(64, 64), nn.LayerNorm(64))

    save(build(), file)
    own, other = mempool.MemoryPool("own", device="cpu"), mempool.MemoryPool("other", device="cpu")
    with mempool.use_pool(own):
        model = build()
    used = own.used_bytes()
    with mempool.use_pool(other):
        load(model, file)
        assert (own.used_bytes(), other.peak_bytes()) == (used, 0)
        load(skeleton(build), file)
    assert other.peak_bytes() == used


@pytest.mark.parametrize(
    ("dtype", "how", "most"),
    [
        (torch.float32, {}, 0.3),
        (torch.bfloat16, {}, 1.3),
        (torch.float32, {"sparsity": 0.5}, 3),
        (torch.float32, {"sparsity": 0.8, "pattern": "block4"}, 3),
        (torch.float32, {"sparsity": 0.5, "pattern": "2:4"}, 3),
        (torch.float32, {"sparsity": 0.5, "method": "wanda"}, 3),
    ],
)
def test_little_is_in_memory_beside_thepacked_model(
    enabled: None, file: Path, dtype: torch.dtype, how: dict[str, Any], most: float
) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(*(nn.Linear(1024, 1024, dtype=dtype) for _ in range(3)))

    save(build(), file)
    batches = [torch.randn(4, 1024)] if how.get("method") else None
    pool = mempool.MemoryPool("loading", device="cpu")
    with mempool.use_pool(pool):
        model = skeleton(lambda: build().float())
        pool.reset_peak()
        load(model, file, **how, calibration=batches)
    before_pruning = 3 * (1024 * 1024 + 4 * 1024 * 3) if batches else 0
    assert pool.peak_bytes() <= max(pool.used_bytes(), before_pruning) + most * 4 * 1024 * 1024


def test_a_packed_model_is_filled_where_it_lies(file: Path) -> None:
    save(packed_model(), file)
    torch.manual_seed(9)
    model = convert(nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 96), nn.ReLU(), nn.LayerNorm(96)))
    model.append(SparseInt8Linear(96, 80, bias=False)).eval()
    layers, scales = (model[1], model[4]), model[1].scales
    model[1].register_forward_hook(lambda *_: None)
    load(model, file)
    assert (model[1], model[4]) == layers
    assert model[1].scales is scales
    assert torch.equal(model(token_batches()[0]), packed_model()(token_batches()[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [{}, {"sparsity": 0.5}, {"sparsity": 0.5, "method": "wanda"}])
def test_packed_layers_stand_for_what_was_there(file: Path, dtype: torch.dtype, how: dict[str, Any]) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to(dtype)

    save(build(), file)
    packed = loaded(build(), file, **how, calibration=[torch.randn(4, 8).to(dtype)] if how.get("method") else None)
    save(packed, file)
    meta = copy.deepcopy(packed).to("meta")
    for model in (packed, loaded(build(), file), loaded(skeleton(build), file), loaded(meta, file)):
        first = next(model.parameters())
        assert (first.dtype, first.device.type) == (dtype, "cpu")
        assert torch.equal(model[1].dequantize(), packed[1].dequantize())


def test_a_packed_layer_drops_the_input_scale_that_the_file_has_not(file: Path) -> None:
    plain = nn.Sequential(nn.Linear(8, 8))
    smooth = convert(copy.deepcopy(plain), calibration=[torch.randn(9, 8)], smooth=True)
    for source, model in ((convert(copy.deepcopy(plain)), copy.deepcopy(smooth)), (smooth, convert(plain))):
        save(source, file)
        load(model, file)
        assert (model[0].input_scale is None) == (source[0].input_scale is None)
        assert torch.equal(model[0].dequantize(), source[0].dequantize())


@pytest.mark.parametrize("how", [{}, {"sparsity": 0.5}, {"sparsity": 0.5, "method": "sparsegpt"}, {"weights": None}])
def test_what_torch_makes_tensors_of_by_default_changes_nothing(file: Path, how: dict[str, Any]) -> None:
    batches = token_batches() if how.get("method") else None
    source, models = small_model(), (small_model(), skeleton())
    save(source, file)
    expected = loaded(small_model(), file, **how, calibration=batches).state_dict()
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            save(source, file.with_name("again"))
            for model in models:
                load(model, file, **how, calibration=batches)
    finally:
        torch.set_default_dtype(dtype)
    assert header_of(file.with_name("again")) == header_of(file)  # with the checksums
    for model in models:
        state = model.state_dict()
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (state[name].dtype, state[name].device.type) == (tensor.dtype, "cpu")
            assert torch.equal(state[name], tensor)


def test_expanded_buffers_and_tensors_of_inference_mode_are_filled(file: Path) -> None:
    def build(value: float) -> nn.Module:
        model = nn.Module()
        model.register_buffer("expanded", torch.full((1, 3), value).expand(2, 3))
        with torch.inference_mode():
            model.register_buffer("inferred", torch.full((3,), value))
        return model

    save(build(2.0), file)
    model = build(0.0)
    inferred = model.inferred
    load(model, file)
    assert model.expanded.tolist() == [[2, 2, 2], [2, 2, 2]]
    assert model.inferred is inferred
    assert inferred.tolist() == [2, 2, 2]


def test_layers_with_hooks_are_not_replaced(file: Path) -> None:
    dense = nn.Sequential(nn.Linear(8, 8))
    for source in (dense, convert(copy.deepcopy(dense))):
        save(source, file)
        model = nn.Sequential(nn.Linear(8, 8))
        model[0].register_forward_hook(lambda *_: None)
        with pytest.raises(ValueError, match="'0' has forward hooks"):
            load(model, file)


def test_a_packed_layer_takes_the_place_of_a_linear_alone(file: Path) -> None:
    save(nn.ModuleDict({"a": Int8Linear(8, 8)}), file)
    model = nn.ModuleDict({"a": nn.Bilinear(8, 8, 8)})
    with pytest.raises(ValueError, match="packed layer 'a', and the model a Bilinear"):
        load(model, file)
    sparse = nn.ModuleDict({"a": SparseInt8Linear(8, 8)})
    with pytest.raises(ValueError, match=r"(?s)layer 'a' of the checkpoint.*is dense"):
        load(sparse, file)


def test_a_tensor_that_a_module_calls_format_is_no_packed_layer(file: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_buffer("format", torch.tensor([1, 2]))
    save(model, file)
    other = nn.Sequential(nn.Linear(2, 2))
    other[0].register_buffer("format", torch.tensor([0, 0]))
    load(other, file, weights=None)
    assert other[0].format.tolist() == [1, 2]


def test_sparse_buffers_of_a_model_are_not_filled(file: Path) -> None:
    safetensors.save_file({"value": torch.eye(3)}, file)
    model = nn.Module()
    model.register_buffer("value", torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match="'value' of the model is sparse or quantized"):
        load(model, file)


def test_a_layer_without_a_shape_is_named(file: Path) -> None:
    save(nn.Sequential(nn.Linear(2, 2)), file)
    for build in (lambda: nn.Sequential(nn.LazyLinear(2)), lambda: skeleton(lambda: nn.Sequential(nn.LazyLinear(2)))):
        with pytest.raises(ValueError, match=r"'0\.weight' of the model has no shape yet"):
            load(build(), file)
