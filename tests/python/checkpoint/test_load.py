"""`load` takes all from the file, says what it did not, and after an error the model is what it was."""

from __future__ import annotations

import copy
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import loaded, small_model, token_batches
from torch import nn
from torch.nn.utils import prune

import mempool
from mempool import compress
from mempool.compress import LoadReport, convert, load, meta_parameters, prune_, save
from mempool.nn import Int8Linear, SparseInt8Linear

safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def _skeleton(build: Callable[[], nn.Module] = small_model) -> Any:
    with meta_parameters():
        return build()


def _state(model: nn.Module) -> dict[str, tuple[int, bytes]]:
    """Each tensor of a model by name: which object it is and what is in it."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        name: (id(tensor), b"" if tensor.is_meta else bytes(tensor.detach().cpu().view(-1).view(torch.uint8).tolist()))
        for name, tensor in tensors
    }


def _modules(model: nn.Module) -> list[int]:
    return [id(module) for module in model.modules()]


def _normalized() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Embedding(9, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


# What is missing, and what is too much


@pytest.mark.parametrize("build", [_normalized, lambda: _skeleton(_normalized)])
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
    before = _state(model)
    with pytest.raises(ValueError, match=f"the checkpoint has no '{name}': missing='keep'"):
        load(model, file, weights=weights)
    assert _state(model) == before


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
    head, before = model["head"], _state(model["head"])
    report = load(model, file, missing="keep")
    assert report == LoadReport(("step", "head.weight", "head.bias"), ("pooler.bias", "pooler.weight"))
    assert isinstance(model["encoder"][0], Int8Linear)
    assert model["head"] is head
    assert _state(head) == before
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
    model = _skeleton(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)))
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
    for model in (build(), _skeleton(build)):
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


# Checksums


def _header(file: Path) -> tuple[dict[str, Any], int]:
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), 8 + size


def _flip(file: Path, position: int, bit: int = 0) -> None:
    with file.open("r+b") as stream:
        stream.seek(position)
        value = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([value ^ 1 << bit]))


def _packed_model() -> nn.Sequential:
    return convert(prune_(small_model(), 0.6, skip=["1"]))


@pytest.mark.parametrize("build", [small_model, _skeleton, _packed_model])
def test_a_flipped_bit_anywhere_in_a_tensor_is_found(file: Path, build: Callable[[], nn.Module]) -> None:
    save(_packed_model(), file)
    good = file.read_bytes()
    header, start = _header(file)
    del header["__metadata__"]
    assert {"1.scales", "1.bias", "4.values", "4.offsets", "0.weight", "3.bias"} <= header.keys()
    model = build()
    before, modules = _state(model), _modules(model)
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        if first == end:
            continue
        for position, bit in ((first, 0), ((first + end) // 2, 3), (end - 1, 7)):
            file.write_bytes(good)
            _flip(file, start + position, bit)
            what = f"layer '{name[0]}'" if name[0] in "14" else f"tensor '{name}'"
            with pytest.raises(ValueError, match=f"{what} of .* is damaged: its bytes"):
                load(model, file)
    assert (_state(model), _modules(model)) == (before, modules)
    file.write_bytes(good)
    load(model, file)
    assert torch.equal(model(token_batches()[0]), _packed_model()(token_batches()[0]))


def test_a_flipped_bit_of_the_header_is_found_or_changes_nothing(file: Path) -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(3)
        layer = nn.Linear(8, 8)
        return nn.Sequential(convert(nn.Sequential(layer))[0], nn.LayerNorm(8))

    save(build(), file)
    good = file.read_bytes()
    input = torch.randn(3, 8)
    expected = build()(input)
    _, end = _header(file)
    for position in range(end):
        file.write_bytes(good)
        _flip(file, position, position % 7)
        model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
        before = _state(model)
        try:
            load(model, file)
        except ValueError:
            assert _state(model) == before
        else:
            assert torch.equal(model(input), expected)


def test_checksums_are_by_packed_layer_and_by_other_tensor(file: Path) -> None:
    save(_packed_model(), file)
    metadata = _header(file)[0]["__metadata__"]
    assert json.loads(metadata["mempool.checksums"]).keys() == {"0.weight", "1", "3.weight", "3.bias", "4"}
    assert metadata["format"] == "pt"


def test_two_layers_that_changed_their_places_are_found(file: Path) -> None:
    save(convert(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))), file)
    header, start = _header(file)
    header["0.scales"], header["1.scales"] = header["1.scales"], header["0.scales"]
    data = file.read_bytes()[start:]
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    with pytest.raises(ValueError, match=r"layer '0' of .* is damaged"):
        load(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), file)


def test_a_name_that_is_tied_to_nothing_is_damage(file: Path) -> None:
    for tied in ('{"1.weight": "0.weigh"}', '{"1.weight": 3}', "[]", "{"):
        safetensors.save_file({"0.weight": torch.ones(2, 2)}, file, {"mempool.tied": tied})
        with pytest.raises(ValueError, match="is damaged"):
            load(nn.Sequential(nn.Linear(2, 2, bias=False)), file)


def test_a_mask_of_another_shape_is_refused(file: Path) -> None:
    safetensors.save_file({"0.weight_orig": torch.ones(2, 2), "0.weight_mask": torch.ones(2)}, file)
    with pytest.raises(ValueError, match=r"'0\.weight_orig' and its mask .* different shapes"):
        load(nn.Sequential(nn.Linear(2, 2, bias=False)), file)


def test_files_without_checksums_load(file: Path) -> None:
    model = _packed_model()
    safetensors.save_file(model.state_dict(), file)  # as the first version wrote them
    assert torch.equal(loaded(_skeleton(), file)(token_batches()[0]), model(token_batches()[0]))


def test_a_truncated_file_is_refused(file: Path) -> None:
    save(_packed_model(), file)
    good = file.read_bytes()
    for size in (4, 8, 100, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:size])
        model = small_model()
        before = _state(model)
        with pytest.raises(ValueError, match=str(file)):
            load(model, file)
        assert _state(model) == before


# What is filled where it lies, and what is new


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
    model = _skeleton(build)
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
        load(_skeleton(build), file)
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
def test_little_is_in_memory_beside_the_packed_model(
    enabled: None, file: Path, dtype: torch.dtype, how: dict[str, Any], most: float
) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(*(nn.Linear(1024, 1024, dtype=dtype) for _ in range(3)))

    save(build(), file)
    batches = [torch.randn(4, 1024)] if how.get("method") else None
    pool = mempool.MemoryPool("loading", device="cpu")
    with mempool.use_pool(pool):
        model = _skeleton(lambda: build().float())
        pool.reset_peak()
        load(model, file, **how, calibration=batches)
    before_pruning = 3 * (1024 * 1024 + 4 * 1024 * 3) if batches else 0
    assert pool.peak_bytes() <= max(pool.used_bytes(), before_pruning) + most * 4 * 1024 * 1024


def test_a_packed_model_is_filled_where_it_lies(file: Path) -> None:
    save(_packed_model(), file)
    torch.manual_seed(9)
    model = convert(nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 96), nn.ReLU(), nn.LayerNorm(96)))
    model.append(SparseInt8Linear(96, 80, bias=False)).eval()
    layers, scales = (model[1], model[4]), model[1].scales
    model[1].register_forward_hook(lambda *_: None)
    load(model, file)
    assert (model[1], model[4]) == layers
    assert model[1].scales is scales
    assert torch.equal(model(token_batches()[0]), _packed_model()(token_batches()[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [{}, {"sparsity": 0.5}, {"sparsity": 0.5, "method": "wanda"}])
def test_packed_layers_stand_for_what_was_there(file: Path, dtype: torch.dtype, how: dict[str, Any]) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to(dtype)

    save(build(), file)
    packed = loaded(build(), file, **how, calibration=[torch.randn(4, 8).to(dtype)] if how.get("method") else None)
    save(packed, file)
    meta = copy.deepcopy(packed).to("meta")
    for model in (packed, loaded(build(), file), loaded(_skeleton(build), file), loaded(meta, file)):
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
    source, models = small_model(), (small_model(), _skeleton())
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
    assert _header(file.with_name("again")) == _header(file)  # with the checksums
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
    for build in (lambda: nn.Sequential(nn.LazyLinear(2)), lambda: _skeleton(lambda: nn.Sequential(nn.LazyLinear(2)))):
        with pytest.raises(ValueError, match=r"'0\.weight' of the model has no shape yet"):
            load(build(), file)


# Errors after which the model is what it was


@pytest.mark.parametrize("build", [small_model, _skeleton])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("batch", [torch.full((2, 3), 60), "no batch", None])
def test_data_that_cannot_be_used_leaves_the_model_as_it_was(
    file: Path, build: Callable[[], nn.Module], method: str, batch: Any
) -> None:
    save(small_model(), file)
    torch.manual_seed(4)
    model = build()
    if not model[0].weight.is_meta:
        nn.init.normal_(model[0].weight)
    before, modules = _state(model), _modules(model)
    batches = [] if batch is None else [batch]
    with pytest.raises((ValueError, TypeError, IndexError)):
        load(model, file, sparsity=0.5, method=method, calibration=batches)
    assert (_state(model), _modules(model)) == (before, modules)


def test_fused_paths_of_torch_are_left_as_they_were(file: Path) -> None:
    def build() -> nn.TransformerEncoder:
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), num_layers=1).eval()

    save(build(), file)
    model = build()
    before = _state(model)
    with pytest.raises(ValueError, match="no batch"):
        load(model, file, sparsity=0.5, method="wanda", calibration=[])
    assert (model.use_nested_tensor, model.layers[0].activation_relu_or_gelu) == (True, 1)
    assert _state(model) == before
    load(model, file)
    assert (model.use_nested_tensor, model.layers[0].activation_relu_or_gelu) == (False, 0)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_layers_run_as_before_after_data_that_cannot_be_used(file: Path, is_compiled: bool) -> None:
    def build(first: nn.Module) -> nn.Sequential:
        if is_compiled:
            first = torch.compile(first, backend="eager")  # type: ignore[assignment]
        return nn.Sequential(first, nn.ReLU(), nn.Linear(64, 64))

    source = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    source = convert(prune_(source, 0.7, skip=["2"]), skip=["2"])
    save(build(source[0]), file)
    input = torch.randn(2, 64)
    for first in (SparseInt8Linear(64, 64, pattern="block4"), nn.Linear(64, 64)):
        model = build(first)
        before = model(input)
        with pytest.raises(RuntimeError, match="7"):
            load(model, file, sparsity=0.5, method="wanda", calibration=[torch.randn(3, 7)])
        assert torch.equal(model(input), before)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_a_limit_that_is_reached_leaves_the_model_as_it_was(enabled: None, file: Path, sparsity: float) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Embedding(16, 16), *(nn.Linear(256, 256) for _ in range(8)))

    save(build(), file)
    for model in (build(), _skeleton(build)):
        before, modules = _state(model), _modules(model)
        pool = mempool.MemoryPool("small", device="cpu", limit="384KiB")
        with mempool.use_pool(pool), pytest.raises(mempool.OutOfMemoryError):
            load(model, file, sparsity=sparsity)
        assert (_state(model), _modules(model)) == (before, modules)
        assert pool.used_bytes() == 0


def test_a_weight_that_is_no_number_leaves_the_model_as_it_was(file: Path) -> None:
    source = small_model()
    with torch.no_grad():
        source[4].weight[0] = float("nan")
    save(source, file)
    model = small_model()
    before, modules = _state(model), _modules(model)
    for how in ({}, {"sparsity": 0.5}, {"sparsity": 0.5, "method": "wanda", "calibration": token_batches()}):
        with pytest.raises(ValueError, match="layer '4': `weight` has a NaN"):
            load(model, file, **how)
    assert (_state(model), _modules(model)) == (before, modules)


# What is no file of one model


def test_files_of_other_kinds_are_refused_with_what_to_do(tmp_path: Path) -> None:
    model = small_model()
    before = _state(model)

    def refused(name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            load(model, tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)

    index = json.dumps({"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}})
    refused("model.safetensors.index.json", index.encode(), "is JSON.* index .*join its shards first: .*save_file")
    refused("indented.json", json.dumps(json.loads(index), indent=2).encode(), "join its shards first")
    refused("model.gguf", b"GGUF" + bytes(100), "GGUF file: .*gguf_file")
    refused("old.bin", b"\x80\x02}q\x00.", r"a pickle, .*weights_only=True.*compress\.save")
    refused("empty.safetensors", b"", "is empty: it was not written to its end")
    refused("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull")
    refused("text.safetensors", b"what is this?", "is no safetensors file")
    refused("zeros.safetensors", bytes(1000), "is no safetensors file")
    torch.save(model.state_dict(), tmp_path / "new.bin")
    with pytest.raises(ValueError, match=r"new\.bin' .* a zip file, .*weights_only=True"):
        load(model, tmp_path / "new.bin")
    assert _state(model) == before


def test_paths_that_are_no_file_are_refused_with_what_to_do(tmp_path: Path) -> None:
    model = small_model()
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "none")):
        load(model, tmp_path / "none")
    with pytest.raises(IsADirectoryError, match=f"is a folder that has none.*{tmp_path}"):
        load(model, tmp_path)
    save(model, tmp_path / "one.safetensors")
    with pytest.raises(IsADirectoryError, match=r"give its file 'one\.safetensors'"):
        load(model, str(tmp_path))
    save(model, tmp_path / "two.safetensors")
    with pytest.raises(IsADirectoryError, match="this folder has 2 of safetensors: join its shards first"):
        load(model, tmp_path)
    paths = sorted(tmp_path.iterdir())
    for several in (paths, tuple(paths), {path: path for path in paths}):
        with pytest.raises(ValueError, match="is given 2: join its shards first"):
            load(model, several)
    shard = tmp_path / "model-00001-of-00002.safetensors"
    save(nn.Sequential(*model[:2]), shard)
    with pytest.raises(ValueError, match=r"one shard of several: join its shards first"):
        load(model, shard)
    for odd in (None, 3, b"bytes", torch.ones(2)):
        with pytest.raises(TypeError, match="is the path of a safetensors file, not"):
            load(model, odd)
    with pytest.raises(TypeError, match=r"model is a torch.nn.Module, not"):
        load(shard, model)
    with pytest.raises(TypeError, match="prefix is"):
        load(model, shard, prefix=None)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        load(model, tmp_path / "pipe")
    assert compress.LoadReport is LoadReport


class _Holder(nn.Module):
    """Its code reads the weight of a layer by another way than the layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        if how == "list":
            self.weights = [self.layer.weight]
        elif how == "attribute":
            self.seen = self.layer.weight.data
        elif how == "buffer":
            self.register_buffer("seen", self.layer.weight.data.t(), persistent=False)
        elif how == "closure":
            weight = self.layer.weight
            self.product = lambda x: x @ weight.t()


@pytest.mark.parametrize("how", ["list", "attribute", "buffer", "closure"])
def test_a_weight_that_is_read_elsewhere_too_is_not_left_behind(file: Path, how: str) -> None:
    save(_Holder("not at all"), file)
    model = _Holder(how)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"'layer' shares the memory of its weight with .*skip=\['layer'\]"):
        load(model, file)
    assert type(model.layer) is nn.Linear
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    load(model, file, skip=["layer"])  # filled in place, so all see it
    assert not torch.equal(model.layer.weight, before["layer.weight"])
