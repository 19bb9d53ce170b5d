"""The operators of packed layers: compiled, exported, without a gradient, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from packed_layers import PATTERNS, packed, pruned

from mempool.nn import Int8Linear


def _arguments(pattern: str) -> tuple[Callable[..., torch.Tensor], tuple[torch.Tensor | None, ...]]:
    layer = packed(pattern, pruned())
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
    model = torch.nn.Sequential(packed(pattern, pruned()), torch.nn.ReLU(), packed(pattern, pruned(90, 20)))
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
        output = packed(pattern, pruned())(torch.randn(3, 70, requires_grad=True))
        with pytest.raises(RuntimeError, match="packed weights are for inference"):
            output.sum().backward()


def test_models_that_could_be_trained_are_compiled_too() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(9, 70), packed("unstructured", pruned()), torch.nn.LayerNorm(90))
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
    layer = packed("dense", pruned())
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
