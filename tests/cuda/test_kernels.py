"""Packed layers on CUDA tensors, through torch. On the stand-in the kernels run on the CPU (tests/cuda_emulator)."""

from __future__ import annotations

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


def test_sparse24_gives_what_the_dense_layer_gives() -> None:
    torch.manual_seed(0)
    linear = _linear(70, 128, lambda r: (r.view(70, 32, 4).argsort(-1) < 2).view(70, 128))
    dense = Int8Linear.from_linear(linear)
    weight, scales = torch.ops.mempool.quantize_weight(linear.weight)
    values, places = torch.ops.mempool.pack_sparse24(weight)
    input = torch.randn(9, 128, device="cpu")
    bias = linear.bias.detach()
    got = torch.ops.mempool.sparse24_linear(
        input.to("cuda"), values.to("cuda"), places.to("cuda"), scales.to("cuda"), bias.to("cuda"), 128
    )
    assert torch.equal(got.cpu(), dense(input))
    buffers = (values.to("cuda"), places.to("cuda"), scales.to("cuda"), None, 128)
    needs_gradient = input.to("cuda").requires_grad_()
    with pytest.raises(RuntimeError, match="for inference"):
        torch.ops.mempool.sparse24_linear(needs_gradient, *buffers).sum().backward()
    weight[3, :3] = 1
    with pytest.raises(RuntimeError, match="2:4"):
        torch.ops.mempool.pack_sparse24(weight)


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
        call(torch.empty(1, device="cuda").expand(1_048_561, 200), buffers["panels"], *rest)


def test_the_doctor_examines_the_kernels() -> None:
    from mempool.doctor.gpu import examine

    result = examine(shapes=[(64, 128)], tokens=[1, 20], rounds=1, ring_bytes=1)
    assert result["problem"] is None
    ours = [row for row in result["rows"] if row["exact"] is not None]
    assert len(ours) == 10
    assert all(row["exact"] and row["problem"] is None for row in ours), ours
    assert result["passed"]
    assert {row["name"] for row in result["rows"]} > {"bfloat16, torch", "2:4 int8, cuSPARSELt"}


def test_a_wrong_output_fails_the_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    from mempool.doctor import gpu

    packed = gpu._packed

    def wrong(layer: Int8Linear) -> object:
        subject = packed(layer)
        subject.reference = lambda input: layer(input) + 1
        return subject

    monkeypatch.setattr(gpu, "_packed", wrong)
    assert not gpu.examine(shapes=[(64, 128)], tokens=[1], rounds=1, ring_bytes=1)["passed"]


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
print(gpu.problem())
"""
    said = run_on_device(script, CUDA_STANDIN_CAPABILITY="7.5")
    assert "need compute capability 8.0 on a GPU, and device 0 has 7.5" in said
    assert "below 8.0" in said


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
