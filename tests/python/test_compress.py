"""From a model to a compressed one: what is pruned, what is converted, what is read and written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import mempool
from mempool.compress import convert, distill_, load, meta_parameters, prune_, report, save
from mempool.compress.distilling import relative_error
from mempool.nn import Int8Linear, SparseInt8Linear


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(50, 64), nn.Linear(64, 96), nn.ReLU(), nn.LayerNorm(96), nn.Linear(96, 80, bias=False)
    ).eval()


def _batches(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(50, (8, 16), generator=generator) for _ in range(count)]


def _share_of_zeros(layer: nn.Linear) -> float:
    return float((layer.weight == 0).float().mean())


def _linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


# prune_


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(("pattern", "sparsity"), [("unstructured", 0.3), ("2:4", 0.5), ("block4", 0.75)])
def test_so_many_weights_go_in_the_pattern_asked_for(method: str, pattern: str, sparsity: float) -> None:
    model = _model()
    assert prune_(model, sparsity, method, pattern, calibration=_batches()) is model
    for layer in _linears(model):
        assert _share_of_zeros(layer) == pytest.approx(sparsity, abs=0.01)
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
    from mempool.compress import pruning

    monkeypatch.setattr(pruning, "HESSIAN_BYTES", 1)
    passes = []
    observe = pruning.observe
    monkeypatch.setattr(pruning, "observe", lambda *arguments: (passes.append(1), observe(*arguments)))
    prune_(_model(), 0.5, "sparsegpt", calibration=iter(_batches()))
    assert len(passes) == 2


def test_kept_masks_hold_while_the_model_is_trained() -> None:
    model = _model()
    prune_(model, 0.5, keep_masks=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(_batches()[0]).square().mean().backward()
    optimizer.step()
    for layer in _linears(model):
        assert _share_of_zeros(layer) == pytest.approx(0.5, abs=0.01)
    converted = convert(model)
    assert isinstance(converted[1], SparseInt8Linear)
    assert converted[1].density == pytest.approx(0.5, abs=0.02)


def test_skipped_layers_stay() -> None:
    model = _model()
    prune_(model, 0.5, skip=["4"])
    assert _share_of_zeros(model[4]) == 0
    assert _share_of_zeros(model[1]) == pytest.approx(0.5, abs=0.01)
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
    assert _share_of_zeros(model[0]) == 0.5


def test_calibration_leaves_no_trace() -> None:
    model = _model().train()
    model[3].eval()
    prune_(model, 0.5, "wanda", calibration=_batches())
    assert [module.training for module in model] == [True, True, True, False, True]
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_batches_come_in_the_forms_that_models_take(kind: type) -> None:
    layer = nn.Linear(8, 8)
    rows = torch.randn(5, 8)
    prune_(layer, 0.5, "wanda", calibration=[{"input": rows} if kind is dict else kind([rows])])
    assert _share_of_zeros(layer) == 0.5


def _with(change: Callable[[nn.Sequential], object]) -> nn.Sequential:
    model = _model()
    with torch.no_grad():
        change(model)
    return model


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
        ({"model": _with(lambda model: model[4].weight.fill_(float("nan")))}, "layer '4'"),
        ({"model": nn.Sequential(nn.Linear(6, 4)), "pattern": "2:4"}, "layer '0' has 6 inputs"),
    ],
)
def test_what_cannot_be_pruned_is_refused(arguments: dict[str, object], message: str) -> None:
    model = arguments.pop("model", None) or _model()
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
    teacher = _model()
    model = prune_(copy.deepcopy(teacher), 0.5, keep_masks=True)
    fixed = model[0].weight.clone()

    def error() -> float:
        with torch.no_grad():
            return sum(float(relative_error(model(b), teacher(b), b)) for b in _batches())

    before = error()
    assert distill_(model, teacher, _batches(), epochs=20) is model
    assert error() < 0.5 * before
    assert torch.equal(model[0].weight, fixed)
    for layer in _linears(model):
        assert _share_of_zeros(layer) == pytest.approx(0.5, abs=0.01)
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="no batch"):
        distill_(model, teacher, [])
    with pytest.raises(ValueError, match="no parameter"):
        distill_(_model().requires_grad_(False), teacher, _batches())


def test_tokens_that_are_padding_teach_nothing() -> None:
    target = torch.ones(2, 3, 4)
    batch = {"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    output = target.clone()
    output[0, 2] = output[1, 1:] = 50.0
    assert relative_error((output,), {"hidden": target}, batch) == 0
    output[0, 0] = 2.0
    assert float(relative_error(output, target, batch)) == pytest.approx(1 / 3)


# convert


def test_each_layer_becomes_what_its_density_says() -> None:
    model = _model()
    dense = copy.deepcopy(model)
    prune_(model, 0.5, skip=["1"])
    pruned = copy.deepcopy(model)
    assert convert(model) is model
    assert isinstance(model[1], Int8Linear)
    assert isinstance(model[4], SparseInt8Linear)
    assert model[4].pattern == "unstructured"
    input = _batches()[0]
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


def test_what_cannot_be_converted_is_refused() -> None:
    with pytest.raises(ValueError, match="'int8', not 'int4'"):
        convert(_model(), weights="int4")
    with pytest.raises(ValueError, match="needs calibration"):
        convert(_model(), smooth=True)
    with pytest.raises(ValueError, match="layer '4': `weight` has a NaN"):
        convert(_with(lambda model: model[4].weight[3].fill_(float("inf"))))
    with pytest.raises(ValueError, match="layer '0': its weight is on meta"):
        convert(nn.Sequential(nn.Linear(4, 4, device="meta")))


# report


def test_the_report_counts_every_byte_once() -> None:
    model = prune_(_model(), 0.5, skip=["1"])
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
    save(_model(), path)
    return path


def _skeleton() -> nn.Sequential:
    with meta_parameters():
        model = _model()
    assert all(parameter.is_meta for parameter in model.parameters())
    return model


def test_building_with_meta_parameters_ends(checkpoint: Path) -> None:
    assert not _model()[1].weight.is_meta
    with pytest.raises(ZeroDivisionError), meta_parameters():
        _ = 1 / 0
    assert not nn.Linear(2, 2).weight.is_meta


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_a_model_read_layer_by_layer_is_the_one_that_is_converted(checkpoint: Path, method: str) -> None:
    input = _batches()[0]
    loaded = load(_skeleton(), checkpoint)
    assert torch.equal(loaded(input), convert(_model())(input))
    # Calibrated with the int8 model instead of the float one: nearly the same weights stay.
    sparse = load(_skeleton(), checkpoint, sparsity=0.5, method=method, calibration=_batches())
    other = convert(prune_(_model(), 0.5, method, calibration=_batches()))
    same = (sparse[4].dequantize() != 0) == (other[4].dequantize() != 0)
    assert same.float().mean() > 0.98
    assert not load(_skeleton(), checkpoint, weights=None)[1].weight.is_meta


def test_sparsegpt_reads_layer_by_layer_too(checkpoint: Path) -> None:
    model = load(_skeleton(), checkpoint, sparsity=0.5, method="sparsegpt", calibration=_batches())
    assert isinstance(model[4], SparseInt8Linear)
    assert model[4].density == pytest.approx(0.5, abs=0.03)


def test_packed_models_are_saved_and_loaded(checkpoint: Path, tmp_path: Path) -> None:
    model = convert(prune_(_model(), 0.5, skip=["1"]))
    save(model, tmp_path / "packed.safetensors")
    input = _batches()[0]
    for skeleton in (_skeleton(), _model(), copy.deepcopy(model)):
        loaded = load(skeleton, tmp_path / "packed.safetensors")
        assert torch.equal(loaded(input), model(input))
        assert not loaded[4].training


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")

    def build() -> nn.Sequential:
        model = nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 50, bias=False))
        model[1].weight = model[0].weight
        return model

    original = build()
    save(original, tmp_path / "tied.safetensors")
    with meta_parameters():
        skeleton = build()
    loaded = load(skeleton, tmp_path / "tied.safetensors", weights=None)
    assert loaded[1].weight is loaded[0].weight
    assert torch.equal(loaded[0].weight, original[0].weight)
    # Packed it would be in memory twice, and pruned the embedding would be, too.
    before = original[0].weight.clone()
    assert convert(prune_(original, 0.5))[1].weight is original[0].weight
    assert torch.equal(original[0].weight, before)
    assert load(skeleton, tmp_path / "tied.safetensors")[1].weight is skeleton[0].weight


def test_what_is_packed_beside_a_tied_weight_is_loaded_again(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")

    def build() -> nn.Sequential:
        model = nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 50, bias=False))
        model[1].weight = model[0].weight
        return model

    original = build()
    original[1] = Int8Linear.from_linear(original[1])
    save(original, tmp_path / "untied.safetensors")
    with meta_parameters():
        skeleton = build()
    loaded = load(skeleton, tmp_path / "untied.safetensors")
    input = torch.arange(50)
    assert torch.equal(loaded(input), original(input))


def test_what_would_not_come_from_the_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layer '1' of the model is packed"):
        load(convert(_model()), checkpoint)
    with pytest.raises(ValueError, match="Sequential"):
        load(nn.Linear(4, 4), checkpoint)
    with torch.device("meta"):
        model = _model()
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
        model = load(skeleton, tmp_path / "large.safetensors")
    assert pool.peak_bytes() <= dense // 2
    assert report(model).total_bytes < 0.27 * dense


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Sequential(*_model(), nn.Linear(80, 3)), "no '5.weight'"),
        (lambda: nn.Sequential(*_model(), nn.LayerNorm(80)), "no '5.weight'"),
        (lambda: nn.Sequential(nn.Embedding(50, 60), *_model()[1:]), r"\(50, 64\) in the checkpoint, and \(50, 60\)"),
        (lambda: nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 90), *_model()[2:]), r"\(96, 64\)"),
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
    save(_with(lambda model: model[4].weight[0].fill_(float("nan"))), path)
    with pytest.raises(ValueError, match="layer '4'"):
        load(_skeleton(), path)
    with pytest.raises(ValueError, match="prune_"):
        load(_skeleton(), path, weights=None, sparsity=0.5)
    packed = convert(_model())
    packed[1].sums[0] += 1
    save(packed, path)
    with pytest.raises(ValueError, match="layer '1' of the checkpoint"):
        load(_skeleton(), path)
