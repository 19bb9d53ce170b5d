"""Packed layers: what they compute, how they are saved and loaded, and what they refuse."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mempool
from mempool.nn import Int8Linear, SparseInt8Linear

PATTERNS = ("dense", "unstructured", "block4")


def _linear(inputs: int = 70, outputs: int = 90, density: float = 0.3, bias: bool = True) -> torch.nn.Linear:
    """Whole blocks of 4 inputs are zero, so that every pattern has something to leave out."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(inputs, outputs, bias=bias)
    kept = (torch.rand(outputs, (inputs + 3) // 4) < density).repeat_interleave(4, dim=1)[:, :inputs]
    with torch.no_grad():
        linear.weight.mul_(kept)
    return linear


def _packed(pattern: str, linear: torch.nn.Linear) -> Int8Linear | SparseInt8Linear:
    if pattern == "dense":
        return Int8Linear.from_linear(linear)
    return SparseInt8Linear.from_linear(linear, pattern)


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
    layer = _packed(pattern, _linear())
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
    linear = _linear()
    input = torch.randn(40, 70)
    assert torch.equal(_packed(pattern, linear)(input), _packed("dense", linear)(input))
    assert torch.equal(_packed(pattern, linear).dequantize(), _packed("dense", linear).dequantize())


@pytest.mark.parametrize("isa", ["reference", "avx2", "avx512"])
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
    assert _packed(pattern, _linear())(torch.randn(0, 70)).shape == (0, 90)
    assert _packed(pattern, _linear())(torch.randn(2, 0, 70)).shape == (2, 0, 90)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_no_number_spoils_its_own_row_alone(pattern: str) -> None:
    layer = _packed(pattern, _linear())
    input = torch.randn(4, 70)
    before = layer(input)
    input[1, 3] = float("nan")
    input[3, 0] = float("-inf")
    after = layer(input)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert after[[1, 3]].isnan().all()


def test_rows_that_are_not_contiguous_are_taken_as_they_are() -> None:
    layer = _packed("dense", _linear())
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
    layer = _packed(pattern, _linear(1024, 2048))
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


# operators


def _arguments(pattern: str) -> tuple[Callable[..., torch.Tensor], tuple[torch.Tensor | None, ...]]:
    layer = _packed(pattern, _linear())
    if isinstance(layer, Int8Linear):
        return torch.ops.mempool.int8_linear.default, (layer.panels, layer.sums, layer.scales, layer.bias)
    operator = torch.ops.mempool.block4_linear if pattern == "block4" else torch.ops.mempool.bitmap_linear
    return operator.default, (layer.masks, layer.values, layer.offsets, layer.sums, layer.scales, layer.bias)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_operators_pass_opcheck(pattern: str) -> None:
    operator, buffers = _arguments(pattern)
    for input in (torch.randn(3, 70), torch.randn(2, 2, 70).bfloat16(), torch.randn(70, requires_grad=True)):
        torch.library.opcheck(operator, (input, *buffers, 70), test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(operator, (torch.randn(3, 70), *buffers[:-1], None, 70))
    weight = torch.randint(-127, 128, (9, 13), dtype=torch.int8)
    name = {"dense": "int8", "unstructured": "bitmap", "block4": "block4"}[pattern]
    torch.library.opcheck(getattr(torch.ops.mempool, f"pack_{name}").default, (weight,))
    packed = getattr(torch.ops.mempool, f"pack_{name}")(weight)
    unpack = getattr(torch.ops.mempool, f"unpack_{name}")
    given = packed[:1] if pattern == "dense" else packed
    torch.library.opcheck(unpack.default, (*given, 9, 13))
    assert torch.equal(unpack(*given, 9, 13), weight)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_compiled_and_exported_models_give_the_same_bits(pattern: str) -> None:
    model = torch.nn.Sequential(_packed(pattern, _linear()), torch.nn.ReLU(), _packed(pattern, _linear(90, 20)))
    input = torch.randn(6, 70)
    expected = model(input)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(input), expected)
    dynamic = ({0: torch.export.Dim("rows")},)
    program = torch.export.export(model, (input,), dynamic_shapes=dynamic)
    assert torch.equal(program.module()(input), expected)
    more = torch.randn(11, 70)
    assert torch.equal(program.module()(more), model(more))


def test_nothing_flows_back_and_the_error_says_so() -> None:
    for pattern in PATTERNS:
        output = _packed(pattern, _linear())(torch.randn(3, 70, requires_grad=True))
        with pytest.raises(RuntimeError, match="packed weights are for inference"):
            output.sum().backward()


def test_models_that_could_be_trained_are_compiled_too() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(9, 70), _packed("unstructured", _linear()), torch.nn.LayerNorm(90))
    input = torch.tensor([[1, 2, 8]])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output = compiled(input)
    assert torch.equal(output, model(input))
    with pytest.raises(RuntimeError, match="packed weights are for inference"):
        output.sum().backward()


def test_a_layer_that_was_never_loaded_says_so() -> None:
    with pytest.raises(RuntimeError, match="weight on meta"):
        Int8Linear(70, 90, device="meta")(torch.ones(1, 70))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_are_computed_as_float32(dtype: torch.dtype) -> None:
    layer = _packed("dense", _linear())
    input = torch.randn(3, 70).to(dtype)
    output = layer(input)
    assert output.dtype == dtype
    assert torch.equal(output, layer(input.float()).to(dtype))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda input, buffers: (input.half(), buffers), "`input` has to be float32 or bfloat16"),
        (lambda input, buffers: (input[:, :30], buffers), "is 30, and the layer has 70 inputs"),
        (lambda input, buffers: (input, [buffers[0].int(), *buffers[1:]]), "has to be uint8"),
        (
            lambda input, buffers: (input, [*buffers[:-2], buffers[-2].double(), buffers[-1]]),
            "`scales` has to be float32",
        ),
        (lambda input, buffers: (input, [*buffers[:-1], buffers[-1][:5]]), "`bias` has 5 elements"),
        (lambda input, buffers: (input, [buffers[0].repeat(2)[::2], *buffers[1:]]), "contiguous"),
        (lambda input, buffers: (input[:, :69], buffers), "is 69, and"),
        (lambda input, buffers: (torch.tensor(1.0), buffers), "last dimension"),
    ],
)
def test_operators_refuse_what_does_not_fit(pattern: str, change: Callable[..., object], message: str) -> None:
    operator, buffers = _arguments(pattern)
    input, changed = change(torch.randn(3, 70), list(buffers))  # type: ignore[misc]
    with pytest.raises(RuntimeError, match=message):
        operator(input, *changed, 70)


def test_masks_that_are_not_aligned_are_refused() -> None:
    operator, (masks, *rest) = _arguments("unstructured")
    assert masks is not None
    shifted = torch.empty(masks.numel() + 1, dtype=torch.uint8)[1:].copy_(masks)
    with pytest.raises(RuntimeError, match="multiple of 8 bytes"):
        operator(torch.randn(3, 70), shifted, *rest, 70)


# making layers


def test_what_cannot_be_packed_is_refused() -> None:
    linear = _linear()
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
        SparseInt8Linear.from_linear(_linear(), "4:8")


def test_the_pattern_with_fewer_bytes_is_taken() -> None:
    assert SparseInt8Linear.from_linear(_linear(density=0.2)).pattern == "block4"
    linear = _linear()
    with torch.no_grad():
        linear.weight.copy_(torch.randn_like(linear.weight) * (torch.rand_like(linear.weight) < 0.3))
    layer = SparseInt8Linear.from_linear(linear)
    assert layer.pattern == "unstructured"
    assert 0.2 < layer.density < 0.4
    assert layer.packed_bytes < 0.6 * Int8Linear.from_linear(linear).packed_bytes


def test_an_input_scale_moves_magnitude_into_the_weight() -> None:
    linear = _linear()
    scale = torch.rand(70) + 0.5
    plain, scaled = Int8Linear.from_linear(linear), Int8Linear.from_linear(linear, input_scale=scale)
    assert torch.allclose(plain.dequantize(), scaled.dequantize(), atol=0.02)
    input = torch.randn(5, 70)
    assert torch.allclose(scaled(input), linear(input), atol=0.05)
    for wrong in (scale[:5], scale * 0, scale / 0):
        with pytest.raises(ValueError, match="input_scale"):
            Int8Linear.from_linear(linear, input_scale=wrong)


def test_packed_memory_comes_from_the_current_pool(enabled: None) -> None:
    linear = _linear(512, 512)
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
    layer = Int8Linear.from_linear(_linear(256, 4096))
    input = torch.randn(256, 256)
    pool = mempool.MemoryPool("request", device="cpu", limit="1MiB")
    with mempool.use_pool(pool), pytest.raises(torch.OutOfMemoryError):
        layer(input)
    assert layer(input).shape == (256, 4096)


def test_a_change_of_type_leaves_scales_as_they_are() -> None:
    layer = Int8Linear.from_linear(_linear(), input_scale=torch.rand(70) + 0.1)
    input = torch.randn(3, 70)
    before = layer(input)
    layer.bfloat16().double().half()
    assert torch.equal(layer(input), before)
    assert {layer.scales.dtype, layer.bias.dtype, layer.input_scale.dtype} == {torch.float32}  # type: ignore[union-attr]


# saving and loading


@pytest.mark.parametrize("pattern", PATTERNS)
def test_copies_and_pickles_compute_the_same(pattern: str) -> None:
    layer = _packed(pattern, _linear())
    input = torch.randn(3, 70)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(input), layer(input))
        assert repr(other) == repr(layer)


@pytest.mark.parametrize("pattern", ["unstructured", "block4"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("assign", [False, True])
def test_buffers_of_another_density_load(pattern: str, device: str, assign: bool, tmp_path: Path) -> None:
    layer = _packed(pattern, _linear(density=0.4))
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    state = torch.load(tmp_path / "layer.pt")
    other = torch.nn.Sequential(SparseInt8Linear(70, 90, pattern="unstructured", device=device))
    other.load_state_dict({f"0.{name}": value for name, value in state.items()}, assign=assign)
    input = torch.randn(3, 70)
    assert torch.equal(other(input), layer(input))
    assert other[0].pattern == pattern
    assert (other[0].values.data_ptr() == state["values"].data_ptr()) == assign


def test_a_checkpoint_of_safetensors_loads(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = torch.nn.Sequential(_packed("block4", _linear()), _packed("dense", _linear(90, 20)))
    safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
    for assign in (False, True):
        other = torch.nn.Sequential(SparseInt8Linear(70, 90), Int8Linear(90, 20))
        other.load_state_dict(safetensors.load_file(tmp_path / "model.safetensors"), assign=assign)
        input = torch.randn(3, 70)
        assert torch.equal(other(input), model(input))


def _damaged(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    state = copy.deepcopy(_packed("unstructured", _linear()).state_dict())
    state[name] = change(state[name])
    return state


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("masks", lambda masks: masks ^ 1, "do not fit each other"),
        ("masks", lambda masks: masks[:-8], "`masks` has"),
        ("values", lambda values: values[:-64], "do not fit each other"),
        ("values", lambda values: values.flip(0), "do not fit each other"),
        ("values", lambda values: values.int(), "`values` has to be torch.uint8"),
        ("offsets", lambda offsets: offsets + 1, "do not fit each other"),
        ("sums", lambda sums: sums + 1, "do not fit each other"),
        ("scales", lambda scales: scales * float("nan"), "`scales` has a NaN"),
        ("scales", lambda scales: scales[:5], "`scales` has shape"),
        ("bias", lambda bias: bias.unsqueeze(0), "`bias` has shape"),
        ("format", lambda header: header + torch.tensor([1, 0, 0, 0]).int(), "reads version 1"),
        ("format", lambda header: header + torch.tensor([0, 9, 0, 0]).int(), "reads version 1"),
        ("format", lambda header: header + torch.tensor([0, 0, 1, 0]).int(), "91 outputs"),
        ("format", lambda header: header[:2], "4 numbers"),
        ("format", lambda header: header.tolist(), "4 numbers"),
        ("format", lambda header: torch.tensor([1, 0, 90, 70], dtype=torch.int32), "is dense"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    layer = _packed("unstructured", _linear(density=0.6))
    model = torch.nn.ModuleDict({"gate": layer})
    input = torch.randn(3, 70)
    before = layer(input)
    state = {f"gate.{key}": value for key, value in _damaged(name, change).items()}
    with pytest.raises(RuntimeError, match=message) as caught:
        model.load_state_dict(state)
    assert "gate" in str(caught.value)
    assert torch.equal(layer(input), before)


def test_missing_and_unexpected_buffers_are_named() -> None:
    state = _packed("unstructured", _linear()).state_dict()
    del state["offsets"]
    state["lora.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*offsets.*Unexpected key.*lora.weight"):
        SparseInt8Linear(70, 90).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*bias"):
        SparseInt8Linear(70, 90, bias=False).load_state_dict(_packed("unstructured", _linear()).state_dict())
