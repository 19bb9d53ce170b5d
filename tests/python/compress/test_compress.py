"""Models are converted, reported on, saved and loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import changed_model, loaded, small_model, tied_model, token_batches
from torch import nn

import mempool
from mempool.compress import convert, load, meta_parameters, prune_, report, save
from mempool.nn import Int8Linear, SparseInt8Linear

# convert


def test_each_layer_becomes_what_its_density_says() -> None:
    model = small_model()
    dense = copy.deepcopy(model)
    prune_(model, 0.5, skip=["1"])
    pruned = copy.deepcopy(model)
    assert convert(model) is model
    assert isinstance(model[1], Int8Linear)
    assert isinstance(model[4], SparseInt8Linear)
    assert model[4].pattern == "unstructured"
    input = token_batches()[0]
    expected = pruned(input)
    assert (model(input) - expected).abs().max() < 0.03 * expected.abs().max()
    blocks = convert(prune_(copy.deepcopy(dense), 0.8, pattern="block4"))
    assert blocks[4].pattern == "block4"


def test_a_layer_alone_and_shared_layers_are_replaced() -> None:
    assert isinstance(convert(nn.Linear(8, 8)), Int8Linear)
    shared = nn.Linear(8, 8)
    model = convert(nn.Sequential(shared, nn.ReLU(), shared))
    assert isinstance(model[0], Int8Linear)
    assert model[0] is model[2]


def test_models_that_read_their_weights_still_run() -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), num_layers=2, enable_nested_tensor=True
    ).eval()
    input = torch.randn(2, 5, 32)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        expected = encoder(input, src_key_padding_mask=padding)
        convert(encoder)
        output = encoder(input, src_key_padding_mask=padding)
    assert isinstance(encoder.layers[0].linear1, Int8Linear)
    assert type(encoder.layers[0].self_attn.out_proj) is not Int8Linear
    assert (output - expected)[~padding].abs().max() < 0.05


def test_smoothing_helps_where_activations_have_outliers() -> None:
    torch.manual_seed(5)
    layer = nn.Sequential(nn.Linear(64, 64))
    inputs = torch.randn(256, 64)
    inputs[:, 7] *= 100
    layer[0].weight.data[:, 7] /= 100
    expected = layer(inputs)

    def error(model: nn.Module) -> float:
        return float((model(inputs) - expected).square().mean())

    plain = convert(copy.deepcopy(layer))
    smooth = convert(copy.deepcopy(layer), calibration=[inputs], smooth=True)
    assert error(smooth) < 0.1 * error(plain)


def test_work_grows_with_the_number_of_layers_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    visits = 0
    named_modules = nn.Module.named_modules  # modules() goes through it, and so does each module that is visited

    def counting(*arguments: Any, **named: Any) -> Any:
        nonlocal visits
        visits += 1
        return named_modules(*arguments, **named)

    monkeypatch.setattr(nn.Module, "named_modules", counting)

    def visits_of(work: Callable[[nn.Module], object], layers: int) -> int:
        nonlocal visits
        model = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(layers // 2))
        save(model, tmp_path / "model.safetensors")
        visits = 0
        work(model)
        return visits

    for work in (
        convert,
        lambda model: convert(model, target="cuda"),
        lambda model: convert(prune_(model, 0.5), skip=[f"{i}.1" for i in range(len(model))]),
        lambda model: load(model, tmp_path / "model.safetensors", sparsity=0.5),
        lambda model: report(convert(model)),
    ):
        few, many = visits_of(work, 20), visits_of(work, 80)
        assert many < 5 * few  # 16 times as many, where each layer looks at all others


def test_what_cannot_be_converted_is_refused() -> None:
    with pytest.raises(ValueError, match="'int8', not 'int4'"):
        convert(small_model(), weights="int4")
    with pytest.raises(ValueError, match="needs calibration"):
        convert(small_model(), smooth=True)
    with pytest.raises(ValueError, match="layer '4': `weight` has a NaN"):
        convert(changed_model(lambda model: model[4].weight[3].fill_(float("inf"))))
    with pytest.raises(ValueError, match="layer '0': its weight is on meta"):
        convert(nn.Sequential(nn.Linear(4, 4, device="meta")))


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_numbers_that_float32_does_not_reach_are_not_packed(tmp_path: Path, part: str) -> None:
    pytest.importorskip("safetensors")
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
    with torch.no_grad():
        getattr(model[1], part)[2] = 1e300
    save(model, tmp_path / "model.safetensors")
    layers = list(model)
    with pytest.raises(ValueError, match=f"layer '1': `{part}` has a NaN or an infinite value"):
        convert(model)
    assert list(model) == layers
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    layers = list(other)
    for sparsity in (0.0, 0.5):
        with pytest.raises(ValueError, match=f"layer '1': `{part}` has a NaN or an infinite value"):
            load(other, tmp_path / "model.safetensors", sparsity=sparsity)
    assert list(other) == layers


# report


def test_the_report_counts_every_byte_once() -> None:
    model = prune_(small_model(), 0.5, skip=["1"])
    tied = nn.Linear(64, 50, bias=False)
    tied.weight = model[0].weight
    model.append(tied)
    total = sum(p.nbytes for p in model.parameters())
    before = report(model)
    assert before.total_bytes == total
    assert before.embedding_bytes == 50 * 64 * 4
    convert(model)
    after = report(model)
    assert after.total_bytes == sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    kinds = {layer.name: layer.kind for layer in after.layers}
    assert kinds == {"1": "int8", "4": "int8 unstructured", "5": "float32"}
    sparse = next(layer for layer in after.layers if layer.name == "4")
    assert sparse.density == pytest.approx(0.5, abs=0.02)
    assert sparse.size_bytes == model[4].packed_bytes
    assert sparse.dense_bytes == 96 * 80 * 4
    assert "int8 unstructured" in str(after)
    assert mempool._core.format_bytes(after.total_bytes) in str(after)


# load and save


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    save(small_model(), path)
    return path


def _skeleton() -> nn.Sequential:
    with meta_parameters():
        model = small_model()
    assert all(parameter.is_meta for parameter in model.parameters())
    return model


def test_building_with_meta_parameters_ends(checkpoint: Path) -> None:
    assert not small_model()[1].weight.is_meta
    with pytest.raises(ZeroDivisionError), meta_parameters():
        _ = 1 / 0
    assert not nn.Linear(2, 2).weight.is_meta


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_a_model_read_layer_by_layer_is_the_one_that_is_converted(checkpoint: Path, method: str) -> None:
    input = token_batches()[0]
    assert torch.equal(loaded(_skeleton(), checkpoint)(input), convert(small_model())(input))
    # Calibrated with the int8 model instead of the float one: nearly the same weights stay.
    sparse = loaded(_skeleton(), checkpoint, sparsity=0.5, method=method, calibration=token_batches())
    other = convert(prune_(small_model(), 0.5, method, calibration=token_batches()))
    same = (sparse[4].dequantize() != 0) == (other[4].dequantize() != 0)
    assert same.float().mean() > 0.98
    assert not loaded(_skeleton(), checkpoint, weights=None)[1].weight.is_meta


def test_sparsegpt_reads_layer_by_layer_too(checkpoint: Path) -> None:
    model = loaded(_skeleton(), checkpoint, sparsity=0.5, method="sparsegpt", calibration=token_batches())
    assert isinstance(model[4], SparseInt8Linear)
    assert model[4].density == pytest.approx(0.5, abs=0.03)


def test_packed_models_are_saved_and_loaded(checkpoint: Path, tmp_path: Path) -> None:
    model = convert(prune_(small_model(), 0.5, skip=["1"]))
    save(model, tmp_path / "packed.safetensors")
    input = token_batches()[0]
    for skeleton in (_skeleton(), small_model(), copy.deepcopy(model)):
        load(skeleton, tmp_path / "packed.safetensors")
        assert torch.equal(skeleton(input), model(input))
        assert not skeleton[4].training


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")

    original = tied_model()
    save(original, tmp_path / "tied.safetensors")
    with meta_parameters():
        skeleton = tied_model()
    load(skeleton, tmp_path / "tied.safetensors", weights=None)
    assert skeleton[1].weight is skeleton[0].weight
    assert torch.equal(skeleton[0].weight, original[0].weight)
    # Packed it would be in memory twice, and pruned the embedding would be, too.
    before = original[0].weight.clone()
    assert convert(prune_(original, 0.5))[1].weight is original[0].weight
    assert torch.equal(original[0].weight, before)
    assert loaded(skeleton, tmp_path / "tied.safetensors")[1].weight is skeleton[0].weight


def test_what_is_packed_beside_a_tied_weight_is_loaded_again(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")

    original = tied_model()
    original[1] = Int8Linear.from_linear(original[1])
    save(original, tmp_path / "untied.safetensors")
    with meta_parameters():
        skeleton = tied_model()
    load(skeleton, tmp_path / "untied.safetensors")
    input = torch.arange(50)
    assert torch.equal(skeleton(input), original(input))


def test_what_would_not_come_from_the_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layer '1' of the model is packed"):
        load(convert(small_model()), checkpoint)
    with pytest.raises(ValueError, match="Sequential"):
        load(nn.Linear(4, 4), checkpoint)
    with torch.device("meta"):
        model = small_model()
        model.register_buffer("scale", torch.ones(3), persistent=False)
    with pytest.raises(ValueError, match="'scale', a buffer"):
        load(model, checkpoint)
    packed = convert(nn.Sequential(nn.Linear(8, 8)))
    save(packed, tmp_path / "bias.safetensors")
    with pytest.raises(ValueError, match=r"has '0\.bias'"):
        load(nn.Sequential(nn.Linear(8, 8, bias=False)), tmp_path / "bias.safetensors")
    save(nn.Sequential(nn.Linear(8, 8).to(torch.float8_e4m3fn)), tmp_path / "fp8.safetensors")
    with pytest.raises(ValueError, match=r"layer '0': .* quantized already"):
        load(nn.Sequential(nn.Linear(8, 8)), tmp_path / "fp8.safetensors")
    (tmp_path / "none.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no safetensors file"):
        load(_skeleton(), tmp_path / "none.safetensors")


def test_a_parameter_of_two_modules_stays_one_on_the_meta_device() -> None:
    shared = nn.Parameter(torch.ones(3))
    with meta_parameters():
        a, b = nn.Module(), nn.Module()
        a.first = shared
        b.second = shared
    assert a.first is b.second
    assert a.first.is_meta


def test_the_dense_model_need_not_fit(enabled: None, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")

    def build() -> nn.Sequential:
        return nn.Sequential(*(nn.Linear(512, 512) for _ in range(12)))

    save(build(), tmp_path / "large.safetensors")
    dense = 12 * 512 * 512 * 4
    pool = mempool.MemoryPool("small machine", device="cpu", limit=dense // 2)
    with mempool.use_pool(pool):
        with pytest.raises(mempool.OutOfMemoryError):
            build()
        with meta_parameters():
            skeleton = build()
        model = loaded(skeleton, tmp_path / "large.safetensors")
    assert pool.peak_bytes() <= dense // 2
    assert report(model).total_bytes < 0.27 * dense


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Sequential(*small_model(), nn.Linear(80, 3)), "no '5.weight'"),
        (lambda: nn.Sequential(*small_model(), nn.LayerNorm(80)), "no '5.weight'"),
        (
            lambda: nn.Sequential(nn.Embedding(50, 60), *small_model()[1:]),
            r"\(50, 64\) in the checkpoint",
        ),
        (lambda: nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 90), *small_model()[2:]), r"\(96, 64\)"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    checkpoint: Path, build: Callable[[], nn.Module], message: str
) -> None:
    with meta_parameters():
        model = build()
    with pytest.raises(ValueError, match=message):
        load(model, checkpoint)


def test_a_weight_that_is_no_number_is_named_with_its_layer(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / "broken.safetensors"
    save(changed_model(lambda model: model[4].weight[0].fill_(float("nan"))), path)
    with pytest.raises(ValueError, match="layer '4'"):
        load(_skeleton(), path)
    with pytest.raises(ValueError, match="prune_"):
        load(_skeleton(), path, weights=None, sparsity=0.5)
    packed = convert(small_model())
    packed[1].sums[0] += 1
    save(packed, path)
    with pytest.raises(ValueError, match="layer '1' of the checkpoint"):
        load(_skeleton(), path)
