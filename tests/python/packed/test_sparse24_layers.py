"""Layers of 2:4 weights on the CPU, which packs, checks and stores them. tests/cuda/test_kernels.py runs them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from small_models import loaded
from torch import nn

import mempool
from mempool import compress
from mempool.nn import Int8Linear, SparseInt8Linear, pack_linear

needs_safetensors = pytest.mark.skipif(find_spec("safetensors") is None, reason="checkpoints need safetensors")


def _linear(outputs: int = 40, inputs: int = 70) -> nn.Linear:
    linear = nn.Linear(inputs, outputs).requires_grad_(False)
    fours = nn.functional.pad(torch.rand(outputs, inputs), (0, -inputs % 4)).unflatten(1, (-1, 4))
    linear.weight.mul_((fours.argsort(-1).argsort(-1) < 2).flatten(1)[:, :inputs])
    return linear


def test_a_layer_holds_what_was_packed() -> None:
    linear = _linear()
    layer = SparseInt8Linear.from_linear(linear, "2:4")
    assert torch.equal(layer.dequantize(), Int8Linear.from_linear(linear).dequantize())
    assert layer.density == torch.count_nonzero(layer.dequantize()).item() / 2800
    assert "pattern=2:4" in repr(layer)
    large = SparseInt8Linear.from_linear(_linear(256, 1024), "2:4")
    weights = 256 * 1024
    assert large.packed_bytes == weights * 5 // 8 + 256 * 3 * 4 + 16  # and sums, scales, bias; the format


def test_the_cpu_says_that_it_does_not_run_it() -> None:
    layer = SparseInt8Linear.from_linear(_linear(), "2:4")
    with pytest.raises(RuntimeError, match=r"on a GPU alone.*repacked"):
        layer(torch.randn(1, 70))
    # Shapes alone are known without a GPU.
    assert layer.to("meta")(torch.randn(2, 3, 70, device="meta")).shape == (2, 3, 40)


def test_a_weight_that_is_not_2_of_4_is_refused() -> None:
    linear = _linear()
    linear.weight[3, 4:7] = 1.0
    with pytest.raises(ValueError, match="more than two"):
        SparseInt8Linear.from_linear(linear, "2:4")
    with pytest.raises(RuntimeError, match="more than two"):
        torch.ops.mempool.pack_sparse24((linear.weight * 9).to(torch.int8))


def test_the_target_decides() -> None:
    linear = _linear(64, 256)
    assert pack_linear(linear).pattern == "unstructured"
    assert pack_linear(linear, target="cuda").pattern == "2:4"
    assert pack_linear(nn.Linear(256, 64), target="cuda").pattern == "dense"
    # Tiles are of 64 inputs: these would be four times the dense layer.
    assert pack_linear(_linear(64, 16), target="cuda").pattern == "unstructured"
    linear.weight.mul_(torch.rand_like(linear.weight) < 0.3)  # 0.275 bytes a weight
    assert pack_linear(linear, target="cuda").pattern == "unstructured"
    with pytest.raises(ValueError, match="'cpu' or 'cuda'"):
        pack_linear(linear, target="gpu")
    with pytest.raises(ValueError, match="'cpu' or 'cuda'"):
        compress.convert(nn.Sequential(), target="gpu")


def test_a_packed_layer_is_packed_anew() -> None:
    linear = _linear()
    layer = SparseInt8Linear.from_linear(linear, "unstructured", input_scale=torch.rand(70) + 0.5)
    input = torch.randn(3, 70)
    there = layer.repacked("2:4")
    assert there.pattern == "2:4"
    assert there.scales is layer.scales
    back = there.repacked("block4").repacked("unstructured")
    assert torch.equal(back(input), layer(input))
    with pytest.raises(ValueError, match="more than two"):
        SparseInt8Linear.from_linear(nn.Linear(70, 40), "unstructured").repacked("2:4")
    with pytest.raises(ValueError, match="the pattern is"):
        layer.repacked("dense")
    assert there.repacked().pattern == "unstructured"
    with pytest.raises(ValueError, match="on the meta device"):
        SparseInt8Linear(70, 40, device="meta").repacked("block4")
    assert SparseInt8Linear(64, 0).repacked("2:4").repacked().out_features == 0


def test_a_packed_model_changes_its_target() -> None:
    model = nn.Sequential(_linear(64, 256), nn.Linear(64, 8), _linear(64, 256))
    compress.convert(model)
    input = torch.randn(2, 256)
    expected = model[0](input)
    patterns = lambda: [layer.pattern for layer in model]  # noqa: E731
    assert patterns() == ["unstructured", "dense", "unstructured"]
    compress.convert(model, target="cuda", skip=["2"])
    assert patterns() == ["2:4", "dense", "unstructured"]
    compress.convert(model)
    assert patterns() == ["unstructured", "dense", "unstructured"]
    assert torch.equal(model[0](input), expected)
    alone = compress.convert(SparseInt8Linear.from_linear(_linear(64, 256), "2:4"))
    assert alone.pattern == "unstructured"
    never_loaded = nn.Sequential(SparseInt8Linear(256, 64, device="meta"))
    compress.convert(never_loaded, target="cuda")
    assert never_loaded[0].pattern == "unstructured"
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="'0' has forward hooks"):
        compress.convert(model, target="cuda")
    with pytest.raises(ValueError, match="has forward hooks"):
        compress.convert(model[0], target="cuda")


def _written(folder: Path, *layers: nn.Linear) -> Path:
    compress.save(nn.Sequential(*layers), folder / "model.safetensors")
    return folder / "model.safetensors"


@needs_safetensors
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_checkpoint_is_pruned_and_packed_for_a_gpu(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibration data goes through what was pruned before, on the CPU."""
    monkeypatch.setattr("mempool.compress.methods.sparsegpt.HESSIAN_BYTES", 4 * 256**2)
    shape = [nn.Linear(256, 256) for _ in range(3)]
    checkpoint = _written(tmp_path, *shape)
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(3)))
    batches = [torch.randn(300, 256)]
    compress.load(model, checkpoint, sparsity=0.5, method=method, pattern="2:4", calibration=batches, target="cuda")
    assert [layer.pattern for layer in model] == ["2:4"] * 3


@needs_safetensors
def test_layers_that_a_checkpoint_has_as_2_of_4_stay_so(tmp_path: Path) -> None:
    """Also where calibration data goes through them."""
    packed = SparseInt8Linear.from_linear(_linear(256, 256), "2:4")
    checkpoint = tmp_path / "half.safetensors"
    compress.save(nn.Sequential(packed, nn.Linear(256, 8)), checkpoint)
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 8))
    compress.load(model, checkpoint, sparsity=0.5, method="wanda", calibration=[torch.randn(20, 256)])
    assert [layer.pattern for layer in model] == ["2:4", "unstructured"]
    assert torch.equal(model[0].dequantize(), packed.dequantize())


def test_layers_change_their_target_one_after_the_other(enabled: None) -> None:
    pool = mempool.MemoryPool("converting", device="cpu")
    linears = [_linear(512, 512) for _ in range(8)]
    with mempool.use_pool(pool):
        model = nn.Sequential(*(SparseInt8Linear.from_linear(linear, "2:4") for linear in linears))
        once = pool.used_bytes()
        pool.reset_peak()
        compress.convert(model)
    assert once > 0
    assert pool.peak_bytes() < 2 * once


@needs_safetensors
def test_calibration_data_does_not_go_through_2_of_4(tmp_path: Path) -> None:
    model = nn.Sequential(SparseInt8Linear.from_linear(_linear(256, 256), "2:4"), nn.Linear(256, 8))
    batches = [torch.randn(300, 256)]
    with pytest.raises(ValueError, match="'0' is 2:4"):
        compress.prune_(model, 0.5, "wanda", calibration=batches)
    with pytest.raises(ValueError, match="smooth=True needs"):
        compress.convert(model, smooth=True)
    assert model[0].pattern == "2:4"
    with pytest.raises(ValueError, match="'0' is 2:4"):
        compress.convert(model, smooth=True, calibration=batches, target="cuda")
    compress.convert(model, smooth=True, calibration=batches)  # packed anew first
    assert model(batches[0]).shape == (300, 8)
    with pytest.raises(ValueError, match="goes with weights='int8'"):
        compress.load(nn.Sequential(nn.Linear(70, 40)), _written(tmp_path, _linear()), weights=None, target="cuda")


@pytest.mark.parametrize(("device", "assign"), [("cpu", False), ("cpu", True), ("meta", True)])
def test_a_state_dict_loads(device: str, assign: bool) -> None:
    layer = SparseInt8Linear.from_linear(_linear(), "2:4")
    other = SparseInt8Linear(70, 40, pattern="unstructured", device=device)
    other.load_state_dict(layer.state_dict(), assign=assign)
    assert other.pattern == "2:4"
    assert torch.equal(other.dequantize(), layer.dequantize())


def test_a_new_layer_is_zero() -> None:
    layer = SparseInt8Linear(70, 40, pattern="2:4")
    assert not layer.dequantize().any()
    layer.load_state_dict(layer.state_dict())  # and sound


@needs_safetensors
def test_a_checkpoint_is_packed_for_a_gpu_and_comes_back(tmp_path: Path) -> None:
    model = nn.Sequential(_linear(64, 256))
    compress.save(model, tmp_path / "dense.safetensors")
    packed = loaded(nn.Sequential(nn.Linear(256, 64)), tmp_path / "dense.safetensors", target="cuda")
    assert packed[0].pattern == "2:4"
    compress.save(packed, tmp_path / "packed.safetensors")
    again = loaded(nn.Sequential(nn.Linear(256, 64)), tmp_path / "packed.safetensors")
    assert again[0].pattern == "2:4"
    assert torch.equal(again[0].dequantize(), packed[0].dequantize())
    assert "2:4" in str(compress.report(again))
    with pytest.raises(ValueError, match="'cpu' or 'cuda'"):
        compress.load(nn.Sequential(nn.Linear(256, 64)), tmp_path / "dense.safetensors", target="gpu")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("values", lambda t: t[1:]),
        ("values", lambda t: t + 1),
        ("places", lambda t: torch.zeros_like(t)),  # the same place twice
        ("places", lambda t: t.float()),
        ("sums", lambda t: t + 1),
    ],
)
def test_damage_is_refused_and_changes_nothing(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    layer = SparseInt8Linear.from_linear(_linear(), "2:4")
    before = layer.dequantize()
    state = layer.state_dict()
    with pytest.raises(RuntimeError):
        layer.load_state_dict({**state, name: change(state[name])})
    assert torch.equal(layer.dequantize(), before)


def test_operators_pass_opcheck() -> None:
    weight = (_linear().weight * 100).to(torch.int8)
    packed = torch.ops.mempool.pack_sparse24(weight)
    utilities = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.mempool.pack_sparse24.default, (weight,), test_utils=utilities)
    torch.library.opcheck(torch.ops.mempool.unpack_sparse24.default, (*packed, 40, 70), test_utils=utilities)
    assert torch.equal(torch.ops.mempool.unpack_sparse24(*packed, 40, 70), weight)
