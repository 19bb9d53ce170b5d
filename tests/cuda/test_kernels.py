"""Packed layers on CUDA tensors, through torch. On the stand-in the kernels run on the CPU (tests/cuda_emulator)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from mempool import ops
from mempool.nn import Int8Linear, SparseInt8Linear

pytestmark = pytest.mark.skipif(not ops.HAS_CUDA, reason="this build has no CUDA kernels")


def _linear(outputs: int, inputs: int, keep: Callable[[torch.Tensor], torch.Tensor] | None = None) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, device="cpu").requires_grad_(False)
    if keep is not None:
        linear.weight.mul_(keep(torch.rand(outputs, inputs)))
    return linear


def _blocks(random: torch.Tensor) -> torch.Tensor:
    outputs, inputs = random.shape
    return (torch.rand(outputs, inputs // 4) < 0.2).repeat_interleave(4, dim=1)


LAYERS = {
    "dense": lambda: Int8Linear.from_linear(_linear(100, 200)),
    "dense, divided": lambda: Int8Linear.from_linear(_linear(70, 1028)),  # blocks share the inputs of a panel
    "bitmap, divided": lambda: SparseInt8Linear.from_linear(_linear(70, 1028, lambda r: r < 0.5), "unstructured"),
    "bitmap": lambda: SparseInt8Linear.from_linear(_linear(100, 200, lambda r: r < 0.5), "unstructured"),
    "block4": lambda: SparseInt8Linear.from_linear(_linear(100, 200, _blocks), "block4"),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_gives_on_the_gpu_what_it_gives_on_the_cpu(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    many = ((80,),) if kind in ("dense", "bitmap", "block4") else ()
    for leading in ((1,), (2, 3), (0,), *many):
        input = torch.randn((*leading, layer.in_features), device="cpu").to(dtype)
        expected = layer(input)
        got = layer.to("cuda")(input.to("cuda"))
        assert got.device.type == "cuda"
        assert got.dtype == dtype
        assert torch.equal(got.cpu(), expected)
        layer.to("cpu")


def test_a_row_with_a_nan_gives_nan_in_that_row_alone() -> None:
    layer = LAYERS["dense"]().to("cuda")
    input = torch.randn(3, 200, device="cpu")
    input[1, 7] = float("nan")
    got = layer(input.to("cuda")).cpu()
    assert got[1].isnan().all()
    assert not got[::2].isnan().any()


def _two_of_four(random: torch.Tensor) -> torch.Tensor:
    outputs, inputs = random.shape
    return (random.view(outputs, inputs // 4, 4).argsort(-1) < 2).view(outputs, inputs)


@pytest.mark.parametrize(("outputs", "inputs", "tokens"), [(70, 128, 9), (70, 2052, 3), (100, 200, 80)])
def test_a_2_of_4_layer_gives_what_the_dense_one_gives(outputs: int, inputs: int, tokens: int) -> None:
    torch.manual_seed(0)
    linear = _linear(outputs, inputs, _two_of_four)
    dense = Int8Linear.from_linear(linear)
    layer = SparseInt8Linear.from_linear(linear, "2:4")
    assert torch.equal(layer.dequantize(), dense.dequantize())
    input = torch.randn(tokens, inputs, device="cpu")
    with pytest.raises(RuntimeError, match="run on a GPU alone"):
        layer(input)
    layer = layer.repacked("unstructured").to("cuda").repacked("2:4")
    assert layer.values.is_cuda
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(layer(input.to("cuda", dtype)).cpu(), dense(input.to(dtype)))
    with pytest.raises(RuntimeError, match="for inference"):
        layer(input.to("cuda").requires_grad_()).sum().backward()


def test_a_model_pruned_to_2_of_4_is_packed_for_a_gpu() -> None:
    from mempool import compress

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32, device="cpu"), nn.Linear(32, 8, device="cpu"))
    compress.prune_(model, 0.5, "magnitude", "2:4", skip=["1"])
    input = torch.randn(3, 64, device="cpu")
    expected = compress.convert(copy.deepcopy(model))(input)
    packed = compress.convert(model, target="cuda")
    assert packed[0].pattern == "2:4"
    assert isinstance(packed[1], Int8Linear)
    assert torch.equal(packed.to("cuda")(input.to("cuda")).cpu(), expected)


def test_what_does_not_fit_is_refused_before_a_launch() -> None:
    layer = LAYERS["dense"]().to("cuda")
    buffers = dict(layer.named_buffers())
    rest = (buffers["sums"], buffers["scales"], buffers["bias"], 200)
    input = torch.randn(2, 200, device="cuda")
    call = torch.ops.mempool.int8_linear
    with pytest.raises(RuntimeError, match="has to be on cuda:0, and is on cpu"):
        call(input, buffers["panels"].cpu(), *rest)
    with pytest.raises(RuntimeError, match="on a GPU"):
        call(input.cpu(), buffers["panels"], *rest)
    with pytest.raises(RuntimeError, match="has to be float32"):
        call(input.half(), buffers["panels"], *rest)
    with pytest.raises(RuntimeError, match="elements"):
        call(input, buffers["panels"][16:], *rest)
    misaligned = torch.empty(buffers["panels"].numel() + 8, dtype=torch.uint8, device="cuda")[8:]
    with pytest.raises(RuntimeError, match="multiple of 16"):
        call(input, misaligned, *rest)
    with pytest.raises(RuntimeError, match="last dimension"):
        call(input[:, :100], buffers["panels"], *rest)
    with pytest.raises(RuntimeError, match="split the batch"):
        call(torch.empty(1, device="cuda").expand(8_388_481, 200), buffers["panels"], *rest)


def test_the_doctor_examines_the_kernels() -> None:
    from mempool.doctor.gpu import examine

    result = examine(shapes=[(64, 128)], tokens=[1, 20], rounds=1, ring_bytes=1, ragged=[(5, 13)])
    assert result["problem"] is None
    ours = [row for row in result["rows"] if row["exact"] is not None]
    assert len(ours) == 5 * (2 + 2 * 5)
    assert all(row["exact"] and row["problem"] is None for row in ours), ours
    assert result["passed"]
    assert {row["name"] for row in result["rows"]} > {"bfloat16, torch", "2:4 int8, cuSPARSELt"}


def test_a_wrong_output_fails_the_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    from mempool.doctor import gpu

    packed = gpu._packed

    def wrong(layer: Int8Linear, reference: Callable[..., torch.Tensor]) -> object:
        return packed(layer, lambda input: reference(input) + 1)

    monkeypatch.setattr(gpu, "_packed", wrong)
    assert not gpu.examine(shapes=[(64, 128)], tokens=[1], rounds=1, ring_bytes=1, ragged=[])["passed"]


def test_a_gpu_without_kernels_has_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    from mempool.doctor import gpu

    monkeypatch.setattr(ops, "CUDA_PROBLEM", "this build has no kernels for a GPU: there is no nvcc")
    result = gpu.examine()
    assert result["problem"] == "this build has no kernels for a GPU: there is no nvcc"
    assert not result["passed"]


def test_a_kernel_that_takes_its_process_along_costs_its_own_rows_alone(run_on_device: Callable[..., str]) -> None:
    script = """
import torch
from mempool import doctor
from mempool.doctor import gpu
# A child of the doctor fails in the second: there is no such layer.
gpu.subjects = lambda: ["checked 5x13 int8", "checked 5x13 nonesuch", "checked 5x13 bitmap 50%"]
seen = []
result = doctor.examine_gpu(changed=lambda result: seen.append((len(result["rows"]), result["passed"])))
assert [row["exact"] for row in result["rows"]] == [True] * 10 + [None] + [True] * 10, result
assert result["rows"][10]["problem"] == "its process ended with status 1: KeyError: 'nonesuch'"
assert seen == [(0, None), (10, None), (11, None), (21, None), (21, True)], seen
row = gpu.lost("timed 70x128 2:4", "no answer within 240 s")
assert not gpu.has_passed([row]) and row["outputs"] == 70 and row["tokens"] is None
"""
    run_on_device(script)


@pytest.mark.stand_in
def test_a_gpu_that_is_too_old_is_refused(run_on_device: Callable[..., str]) -> None:
    script = """
import torch
from mempool.doctor import gpu
from mempool.nn import Int8Linear
layer = Int8Linear(64, 64).to("cuda")
try:
    layer(torch.zeros(1, 64).to("cuda"))
except RuntimeError as error:
    print(error)
print(gpu.problem(), "passed:", gpu.examine()["passed"])
"""
    said = run_on_device(script, CUDA_STANDIN_CAPABILITY="7.5")
    assert "need compute capability 8.0 on a GPU, and device 0 has 7.5" in said
    assert "below 8.0" in said
    assert "passed: False" in said


def test_a_layer_is_loaded_and_checked_on_the_gpu() -> None:
    layer = LAYERS["bitmap"]()
    other = SparseInt8Linear(200, 100).to("cuda")
    other.load_state_dict(layer.state_dict())
    assert other.masks.is_cuda
    input = torch.randn(2, 200, device="cpu")
    assert torch.equal(other(input.to("cuda")).cpu(), layer(input))
    assert torch.equal(other.dequantize().cpu(), layer.dequantize())
    broken = {**layer.state_dict(), "offsets": layer.offsets + 1}
    with pytest.raises(RuntimeError, match="do not fit each other"):
        other.load_state_dict(broken)
