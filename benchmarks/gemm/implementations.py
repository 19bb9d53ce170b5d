"""The implementations that are timed: each makes layers of a weight, and knows what a call has to read and compute."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

Layer = Callable[[torch.Tensor], Any]
Copies = Callable[[], Layer]  # each call makes a layer with its own memory


@dataclass(frozen=True)
class Implementation:
    """One way to run a layer."""

    name: str
    make: Callable[[nn.Linear], Copies]
    density: float = 1.0  # of the weight that it gets
    blocks: bool = False  # the weight's zeros are whole blocks of 4 inputs
    weight_bytes: Callable[[int, int, float], float] = lambda n, k, density: n * k  # read by each call
    arithmetic: str = "int8"  # the ceiling that bounds it; "" where none was measured
    skips: bool = False  # zeros are not multiplied
    most_tokens: int = 1 << 30


def linear_of(outputs: int, inputs: int, density: float, blocks: bool, seed: int) -> nn.Linear:
    """A float32 layer of about the given density, of weights or of blocks of 4 inputs."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=True, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        linear.bias.normal_(generator=generator)
        linear.weight.normal_(generator=generator)
        if density < 1:
            shape = (outputs, inputs // 4) if blocks else (outputs, inputs)
            kept = torch.rand(shape, generator=generator) < density
            linear.weight.mul_(kept.repeat_interleave(4, dim=1) if blocks else kept)
    return linear.requires_grad_(False)


def _ours(pattern: str) -> Callable[[nn.Linear], Copies]:
    def make(linear: nn.Linear) -> Copies:
        from mempool.nn import Int8Linear, SparseInt8Linear

        dense = pattern == "dense"
        layer = Int8Linear.from_linear(linear) if dense else SparseInt8Linear.from_linear(linear, pattern)
        return lambda: copy.deepcopy(layer)

    return make


def _quantized(engine: str) -> Callable[[nn.Linear], Copies]:
    """torch's own dynamic int8 layers, with one scale for each output."""

    def make(linear: nn.Linear) -> Copies:
        torch.backends.quantized.engine = engine
        scales = linear.weight.abs().amax(dim=1).clamp(min=1e-6) / 127
        zeros = torch.zeros(linear.out_features, dtype=torch.long)
        weight = torch.quantize_per_channel(linear.weight, scales.double(), zeros, 0, torch.qint8)

        def layer() -> Layer:
            packed = torch.ops.quantized.linear_prepack(weight, linear.bias)
            return lambda input: torch.ops.quantized.linear_dynamic(input, packed, False)

        return layer

    return make


_compiled: dict[torch.dtype, Any] = {}


def _compiled_linear(dtype: torch.dtype) -> Callable[[nn.Linear], Copies]:
    def make(linear: nn.Linear) -> Copies:
        if dtype not in _compiled:
            torch._dynamo.config.recompile_limit = 64  # both types and all numbers of tokens share one function
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            _compiled[dtype] = torch.compile(nn.functional.linear, dynamic=False)
        compiled = _compiled[dtype]

        def layer() -> Layer:
            weight, bias = linear.weight.to(dtype, copy=True), linear.bias.to(dtype, copy=True)
            return lambda input: compiled(input.to(dtype), weight, bias)

        return layer

    return make


def _csr(linear: nn.Linear) -> Copies:
    full = linear.weight.to_sparse_csr()
    bias = linear.bias.unsqueeze(1)

    def layer() -> Layer:
        rows, columns = full.crow_indices().int(), full.col_indices().int()
        weight = torch.sparse_csr_tensor(rows, columns, full.values().clone(), full.shape, check_invariants=False)
        return lambda input: torch.addmm(bias, weight, input.t()).t()

    return layer


def _onnx_runtime(linear: nn.Linear) -> Copies:
    """ONNX Runtime on a dynamically quantized layer, one scale for each output."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime.quantization import QuantType, quantize_dynamic

    weight = numpy_helper.from_array(linear.weight.T.contiguous().numpy(), "weight")
    bias = numpy_helper.from_array(linear.bias.numpy(), "bias")
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"]), helper.make_node("Add", ["y", "bias"], ["z"])]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", size])
        for name, size in (("x", linear.in_features), ("z", linear.out_features))
    ]
    graph = helper.make_graph(nodes, "linear", values[:1], values[1:], [weight, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        path, quantized = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, path)
        logging.getLogger().setLevel(logging.ERROR)  # silences its advice to prepare the model first
        quantize_dynamic(path, quantized, weight_type=QuantType.QInt8, per_channel=True)
        content = quantized.read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Each copy has its own threads, which by default spin while the next copy runs, and the next peer.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def layer() -> Layer:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return lambda input: session.run(None, {"x": input.numpy()})

    return layer


def _bitmap_bytes(outputs: int, inputs: int, density: float) -> float:
    return outputs * inputs * (1 / 8 + density)


def _block_bytes(outputs: int, inputs: int, density: float) -> float:
    return outputs * inputs * (1 / 32 + density)


ALL: Sequence[Implementation] = (
    Implementation("int8", _ours("dense")),
    *(
        Implementation(f"bitmap {1 - density:.0%}", _ours("unstructured"), density, weight_bytes=_bitmap_bytes)
        for density in (0.5, 0.25, 0.1)
    ),
    *(
        Implementation(f"block4 {1 - density:.0%}", _ours("block4"), density, True, _block_bytes, skips=True)
        for density in (0.2, 0.1)
    ),
    Implementation("fbgemm", _quantized("fbgemm")),
    Implementation("oneDNN", _quantized("onednn")),
    Implementation("ONNX Runtime", _onnx_runtime),
    Implementation(
        "torch fp32", _compiled_linear(torch.float32), weight_bytes=lambda n, k, d: 4 * n * k, arithmetic="float32"
    ),
    Implementation(
        "torch bf16", _compiled_linear(torch.bfloat16), weight_bytes=lambda n, k, d: 2 * n * k, arithmetic=""
    ),
    *(
        Implementation(
            f"CSR {1 - density:.0%}",
            _csr,
            density,
            weight_bytes=lambda n, k, d: 8 * n * k * d,
            arithmetic="float32",
            skips=True,
            most_tokens=64,
        )
        for density in (0.5, 0.1)
    ),
)
