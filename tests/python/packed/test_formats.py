"""Each packed format's object says the same as its operators, and is what layers, files and the doctor read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mempool.ops
from mempool.doctor import gpu
from mempool.nn import Int8Linear, SparseInt8Linear
from mempool.packed import formats
from mempool.packed.format import TARGETS, Format

ALL = pytest.mark.parametrize("format", formats.FORMATS.values(), ids=lambda format: format.pattern)


def two_of_four(outputs: int, inputs: int) -> torch.Tensor:
    weight = torch.randint(-127, 128, (outputs, inputs), generator=torch.Generator().manual_seed(3), dtype=torch.int8)
    weight[:, 1::4] = 0
    weight[:, 3::4] = 0
    return weight


def arguments(operator: Any) -> list[str]:
    return [argument.name for argument in operator._schema.arguments]


def test_numbers_and_names_are_those_of_saved_layers() -> None:
    numbers = {format.number: format.pattern for format in formats.FORMATS.values()}
    assert numbers == {0: "dense", 1: "unstructured", 2: "block4", 3: "2:4"}
    assert all(pattern == format.pattern for pattern, format in formats.FORMATS.items())


@ALL
def test_operators_take_the_buffers_in_order(format: Format) -> None:
    packed = [*format.buffers, "sums"]
    assert arguments(format.pack) == ["weight"]
    assert len(format.pack._schema.returns) == len(packed)  # type: ignore[attr-defined]
    unpacked = [*format.buffers] if format.reads_anything else packed
    assert arguments(format.unpack) == [*unpacked, "outputs", "inputs"]
    assert arguments(format.check) == [*packed, "outputs", "inputs"]
    assert arguments(format.linear) == ["input", *packed, "scales", "bias", "inputs"]


@ALL
@pytest.mark.parametrize(("outputs", "inputs"), [(66, 37), (1, 1), (64, 64), (0, 5)])
def test_packing_makes_buffers_of_these_sizes(format: Format, outputs: int, inputs: int) -> None:
    weight = two_of_four(outputs, inputs)
    buffers = dict(zip(format.packed_names, format.pack(weight), strict=True))
    sizes = {**format.sizes(outputs, inputs), "sums": outputs}
    for name, buffer in buffers.items():
        assert buffer.dtype == format.dtype_of(name)
        assert buffer.numel() == sizes.get(name, buffer.numel())
    assert torch.equal(format.unpacked(buffers, outputs, inputs), weight)
    assert format.kept(buffers) >= int(weight.count_nonzero())


@ALL
@pytest.mark.parametrize(("outputs", "inputs"), [(66, 37), (0, 5)])
def test_zero_is_a_sound_weight(format: Format, outputs: int, inputs: int) -> None:
    buffers = format.zero(inputs, outputs, True, None)
    format.require_sound(buffers, outputs, inputs)
    assert {*format.stored_names, "bias"} == {*buffers}
    assert not format.unpacked(buffers, outputs, inputs).any()
    assert formats.format_of(buffers["format"]) is format


@ALL
def test_layers_run_where_the_format_says(format: Format) -> None:
    linear = torch.nn.Linear(37, 66)
    with torch.no_grad():
        linear.weight.copy_(two_of_four(66, 37))
    is_dense = not format.is_sparse
    layer = Int8Linear.from_linear(linear) if is_dense else SparseInt8Linear.from_linear(linear, format.pattern)
    assert {*format.buffers} <= {*layer.state_dict()}
    if "cpu" in format.targets:
        assert torch.allclose(layer(torch.eye(37)), linear(torch.eye(37)), atol=1.0)
    else:
        with pytest.raises(RuntimeError, match="on a GPU alone"):
            layer(torch.eye(37))


def test_the_doctor_examines_every_format() -> None:
    assert {format.pattern for format, _ in gpu._OURS.values()} == {*formats.FORMATS}


@pytest.mark.parametrize(
    ("kept", "cpu", "cuda"),
    [
        (lambda n: torch.ones(n, n), "dense", "dense"),
        (lambda n: two_of_four(n, n), "unstructured", "2:4"),
        (lambda n: torch.rand(n, n) < 0.3, "unstructured", "unstructured"),
        (lambda n: (torch.rand(n, n // 4) < 0.1).repeat_interleave(4, 1), "block4", "block4"),
        (lambda n: torch.zeros(n, n), "block4", "block4"),
    ],
)
def test_the_format_of_a_weight(kept: Any, cpu: str, cuda: str) -> None:
    torch.manual_seed(0)
    weight = kept(128).to(torch.int8)
    assert formats.format_for(weight, "cpu").pattern == cpu
    assert formats.format_for(weight, "cuda").pattern == cuda
    assert TARGETS == ("cpu", "cuda")


def test_what_no_version_reads_is_no_format() -> None:
    header = formats.BITMAP.header(3, 4)
    assert formats.format_of(header) is formats.BITMAP
    for place, value in ((0, 2), (1, 99), (1, -1)):
        other = header.clone()
        other[place] = value
        assert formats.format_of(other) is None
    assert formats.format_of(header.long()) is None
    assert formats.format_of(header[:3]) is None


def test_sizes_of_no_format_are_refused() -> None:
    assert mempool.ops.packed_sizes("2:4", 16, 64) == {"values": 512, "places": 32}
    with pytest.raises(ValueError, match="the pattern is 'dense', 'unstructured', 'block4' or '2:4', not '4:8'"):
        mempool.ops.packed_sizes("4:8", 16, 64)
