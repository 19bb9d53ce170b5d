"""Packed layers: what they compute, how they are made, and what they refuse."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from packed_layers import PATTERNS, packed, pruned

import mempool
from mempool.nn import Int8Linear, SparseInt8Linear


def _expected(layer: Int8Linear | SparseInt8Linear, input: torch.Tensor) -> torch.Tensor:
    """The product with the weight as it was packed and the rows as they are quantized, in float64."""
    rows = input.double()
    scale = rows.abs().amax(dim=-1, keepdim=True) / 127
    quantized = torch.where(scale > 0, (rows / scale).round() * scale, 0.0)
    bias = 0 if layer.bias is None else layer.bias.double()
    return quantized @ layer.dequantize().double().T + bias


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(70,), (1, 70), (3, 70), (2, 5, 70), (130, 70)])
def test_a_layer_multiplies_quantized_rows(pattern: str, shape: tuple[int, ...]) -> None:
    layer = packed(pattern, pruned())
    input = torch.randn(*shape)
    expected = _expected(layer, input)
    output = layer(input)
    assert output.shape == (*shape[:-1], 90)
    # Halves of a step may round either way where the scale is taken in float32.
    assert (output - expected).abs().max() < 0.01 * expected.abs().max()
    assert (output - expected).abs().mean() < 1e-4 * expected.abs().max()
    low = layer(input.bfloat16())
    assert low.dtype == torch.bfloat16
    assert (low.double() - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_all_patterns_give_the_same_bits(pattern: str) -> None:
    linear = pruned()
    input = torch.randn(40, 70)
    assert torch.equal(packed(pattern, linear)(input), packed("dense", linear)(input))
    assert torch.equal(packed(pattern, linear).dequantize(), packed("dense", linear).dequantize())


@pytest.mark.parametrize("isa", ["reference", "avx2", "avx512", "neon", "neon_dot"])
def test_every_instruction_set_gives_the_same_bits(isa: str, tmp_path: Path) -> None:
    script = (
        "import sys, torch, mempool\n"
        "torch.manual_seed(3)\n"
        "linear = torch.nn.Linear(203, 150)\n"
        "input = torch.randn(21, 203)\n"
        "layers = [mempool.nn.Int8Linear.from_linear(linear),"
        " mempool.nn.SparseInt8Linear.from_linear(linear, 'unstructured'),"
        " mempool.nn.SparseInt8Linear.from_linear(linear, 'block4')]\n"
        "torch.save([layer(input) for layer in layers], sys.argv[1])\n"
    )
    outputs = []
    for forced in (isa, ""):
        path = tmp_path / f"isa-{forced}.pt"
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)],
            env={**os.environ, "MEMPOOL_FORCE_ISA": forced},
            capture_output=True,
            text=True,
        )
        if "this machine cannot run it" in done.stderr:
            pytest.skip(f"this machine has no {isa}")
        assert done.returncode == 0, done.stderr
        outputs.append(torch.load(path))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_an_instruction_set_that_is_none_is_an_error() -> None:
    script = "import torch, mempool; mempool.nn.Int8Linear(4, 4)(torch.zeros(1, 4))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "MEMPOOL_FORCE_ISA": "sse"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "MEMPOOL_FORCE_ISA=sse is none of" in done.stderr


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_rows_give_no_rows(pattern: str) -> None:
    assert packed(pattern, pruned())(torch.randn(0, 70)).shape == (0, 90)
    assert packed(pattern, pruned())(torch.randn(2, 0, 70)).shape == (2, 0, 90)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_no_number_spoils_its_own_row_alone(pattern: str) -> None:
    layer = packed(pattern, pruned())
    input = torch.randn(4, 70)
    before = layer(input)
    input[1, 3] = float("nan")
    input[3, 0] = float("-inf")
    after = layer(input)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert after[[1, 3]].isnan().all()


def test_rows_that_are_not_contiguous_are_taken_as_they_are() -> None:
    layer = packed("dense", pruned())
    wide = torch.randn(5, 140)
    assert torch.equal(layer(wide[:, ::2]), layer(wide[:, ::2].contiguous()))


def _threads_that_work(action: Callable[[], object]) -> int:
    """How many threads of this process ran for a tenth of the time of the busiest, or more, during ``action``."""

    def run_times() -> dict[str, int]:
        times = {}
        for task in Path("/proc/self/task").iterdir():
            times[task.name] = int((task / "schedstat").read_text().split()[0])  # ns
        return times

    before = run_times()
    action()
    spent = [now - before.get(task, 0) for task, now in run_times().items()]
    return sum(time_ns > max(spent) / 10 for time_ns in spent)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_layer_runs_on_as_many_threads_as_torch_does(pattern: str, threads: int) -> None:
    layer = packed(pattern, pruned(1024, 2048))
    input = torch.randn(64, 1024)

    def work() -> None:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            layer(input)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        layer(input)
        output = layer(input)
        assert _threads_that_work(work) == threads
        torch.set_num_threads(1)
        assert torch.equal(layer(input), output)
    finally:
        torch.set_num_threads(before)


# making layers


def test_what_cannot_be_packed_is_refused() -> None:
    linear = pruned()
    with torch.no_grad():
        linear.weight[7, 3] = float("inf")
    with pytest.raises(ValueError, match="row 7"):
        Int8Linear.from_linear(linear)
    with pytest.raises(TypeError, match="Conv1d"):
        Int8Linear.from_linear(torch.nn.Conv1d(1, 1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on meta"):
        Int8Linear.from_linear(torch.nn.Linear(3, 3, device="meta"))
    with pytest.raises(ValueError, match="65536 inputs"):
        Int8Linear.from_linear(torch.nn.Linear(65537, 1))
    with pytest.raises(ValueError, match="65536 inputs"):
        Int8Linear(70000, 1)
    with pytest.raises(ValueError, match="'unstructured', 'block4' or '2:4'"):
        SparseInt8Linear.from_linear(pruned(), "4:8")


def test_the_pattern_with_fewer_bytes_is_taken() -> None:
    assert SparseInt8Linear.from_linear(pruned(density=0.2)).pattern == "block4"
    linear = pruned()
    with torch.no_grad():
        linear.weight.copy_(torch.randn_like(linear.weight) * (torch.rand_like(linear.weight) < 0.3))
    layer = SparseInt8Linear.from_linear(linear)
    assert layer.pattern == "unstructured"
    assert 0.2 < layer.density < 0.4
    assert layer.packed_bytes < 0.6 * Int8Linear.from_linear(linear).packed_bytes


def test_an_input_scale_moves_magnitude_into_the_weight() -> None:
    linear = pruned()
    scale = torch.rand(70) + 0.5
    plain, scaled = Int8Linear.from_linear(linear), Int8Linear.from_linear(linear, input_scale=scale)
    assert torch.allclose(plain.dequantize(), scaled.dequantize(), atol=0.02)
    input = torch.randn(5, 70)
    assert torch.allclose(scaled(input), linear(input), atol=0.05)
    for wrong in (scale[:5], scale * 0, scale / 0):
        with pytest.raises(ValueError, match="input_scale"):
            Int8Linear.from_linear(linear, input_scale=wrong)


def test_packed_memory_comes_from_the_current_pool(enabled: None) -> None:
    linear = pruned(512, 512)
    pool = mempool.MemoryPool("weights", device="cpu")
    with mempool.use_pool(pool):
        layer = Int8Linear.from_linear(linear)
    assert layer.packed_bytes <= pool.used_bytes() < 1.1 * layer.packed_bytes
    assert mempool._core.format_bytes(layer.packed_bytes) in repr(layer)
    del layer
    small = mempool.MemoryPool("small", device="cpu", limit="100KiB")
    with mempool.use_pool(small), pytest.raises(mempool.OutOfMemoryError) as caught:
        Int8Linear.from_linear(linear)
    assert mempool.oom_info(caught.value)["pool"] == "small"
    del caught  # its traceback holds what was packed so far
    gc.collect()
    assert small.used_bytes() == 0


def test_a_request_over_its_limit_gets_the_error_of_torch(enabled: None) -> None:
    layer = Int8Linear.from_linear(pruned(256, 4096))
    input = torch.randn(256, 256)
    pool = mempool.MemoryPool("request", device="cpu", limit="1MiB")
    with mempool.use_pool(pool), pytest.raises(torch.OutOfMemoryError):
        layer(input)
    assert layer(input).shape == (256, 4096)


def test_a_change_of_type_leaves_scales_as_they_are() -> None:
    layer = Int8Linear.from_linear(pruned(), input_scale=torch.rand(70) + 0.1)
    input = torch.randn(3, 70)
    before = layer(input)
    layer.bfloat16().double().half()
    assert torch.equal(layer(input), before)
    assert {layer.scales.dtype, layer.bias.dtype, layer.input_scale.dtype} == {torch.float32}  # type: ignore[union-attr]
