"""The description of a packed format: its buffers, its operators, its size. ``formats.py`` has an object for each."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mempool.packed import ops
from mempool.packed.quantizing import is_finite

VERSION = 1
TARGETS = ("cpu", "cuda")  # the kinds of device that a layer can be packed for
_OF_EVERY_FORMAT = {
    "format": torch.int32,
    "sums": torch.int32,
    "scales": torch.float32,
    "bias": torch.float32,
    "input_scale": torch.float32,
}

Operator: TypeAlias = Callable[..., Any]  # an OpOverload


@dataclass(frozen=True)
class Buffer:
    dtype: torch.dtype
    # Its number of elements by the weight's shape, (outputs, inputs); None: the number depends on the weight's values.
    elements: Callable[[int, int], int] | None = None
    elements_of_zero: int = 0  # that number for a weight that is all zero
    fill: int = 0  # the value of each element for a weight that is all zero


@dataclass(frozen=True, kw_only=True, eq=False)
class Format:
    """A format in which a layer keeps its int8 weight ``[N, K]`` while it is used.

    A layer has the buffers of its format, and in every format ``format`` (int32: version, number, N, K), ``sums``
    (int32 [N]: the sum of each output's weights), ``scales`` (float32 [N]) and, if it has them, ``bias`` (float32 [N])
    and ``input_scale`` (float32 [K]).
    """

    pattern: str  # its name for users
    number: int  # its number in the buffer `format`, which may never change
    buffers: Mapping[str, Buffer]  # its own buffers, in the order of its operators' arguments
    pack: Operator  # int8 [N, K] -> (*buffers, sums)
    unpack: Operator
    check: Operator
    linear: Operator
    # About how many bytes an int8 weight takes in this format.
    bytes_of: Callable[[Tensor], float]
    # How many weights the buffers of a layer keep.
    kept: Callable[[Mapping[str, Any]], int]
    # The format's rank by the speed of its GEMM for many tokens: 0 is the fastest.
    speed_rank: int
    targets: tuple[str, ...] = TARGETS  # the targets that have kernels for it
    is_sparse: bool = True
    reads_anything: bool = False  # any bytes may be unpacked, and `unpack` takes no sums
    # Why the format cannot hold an int8 weight; None where it can.
    misfit: Callable[[Tensor], str | None] = lambda _: None
    # The names of the buffers that `pack` returns and `check` takes, in their order.
    packed_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "packed_names", (*self.buffers, "sums"))

    @property
    def stored_names(self) -> tuple[str, ...]:
        """The buffers that every stored layer of this format has."""
        return ("format", *self.packed_names, "scales")

    def dtype_of(self, name: str) -> torch.dtype:
        return self.buffers[name].dtype if name in self.buffers else _OF_EVERY_FORMAT[name]

    def sizes(self, outputs: int, inputs: int) -> dict[str, int]:
        """The number of elements of each buffer for which it follows from the weight's shape alone."""
        return {
            name: buffer.elements(outputs, inputs)
            for name, buffer in self.buffers.items()
            if buffer.elements is not None
        }

    def header(self, outputs: int, inputs: int, device: Any = None) -> Tensor:
        return torch.tensor([VERSION, self.number, outputs, inputs], dtype=torch.int32, device=device)

    def zero(self, in_features: int, out_features: int, bias: bool, device: Any) -> dict[str, Tensor]:
        """The buffers of a weight that is all zero."""
        if any(isinstance(n, bool) or not isinstance(n, numbers.Integral) for n in (in_features, out_features)):
            raise TypeError(
                f"in_features and out_features are whole numbers, not {in_features!r} and {out_features!r}."
            )
        if not 1 <= in_features <= ops.MOST_INPUTS or out_features < 0:
            raise ValueError(
                f"a packed layer has 1 to {ops.MOST_INPUTS} inputs, and at least 0 outputs; asked for {in_features} "
                f"and {out_features}."
            )
        buffers = {"format": self.header(out_features, in_features, device)}
        sizes = self.sizes(out_features, in_features)
        for name, buffer in self.buffers.items():
            size = sizes.get(name, buffer.elements_of_zero)
            buffers[name] = torch.full((size,), buffer.fill, dtype=buffer.dtype, device=device)
        for name in ("sums", "scales", *(["bias"] if bias else [])):
            buffers[name] = torch.zeros(out_features, dtype=self.dtype_of(name), device=device)
        return buffers

    def require_sound(self, buffers: Mapping[str, Tensor], outputs: int, inputs: int) -> None:
        """Raises RuntimeError unless the buffers are a weight of this shape; on the meta device values go unchecked."""
        on_cpu = {name: buffer if buffer.is_meta else buffer.cpu() for name, buffer in buffers.items()}
        for name, elements in (("scales", outputs), ("bias", outputs), ("input_scale", inputs)):
            buffer = on_cpu.get(name)
            if buffer is not None and buffer.shape != (elements,):
                raise RuntimeError(f"`{name}` has shape {tuple(buffer.shape)}, and needs {(elements,)}.")
            if buffer is not None and not buffer.is_meta and not is_finite(buffer):
                raise RuntimeError(f"`{name}` has a NaN or an infinite value.")
        if not any(buffer.is_meta for buffer in on_cpu.values()):
            self.check(*(on_cpu[name] for name in self.packed_names), outputs, inputs)

    def unpacked(self, buffers: Mapping[str, Any], outputs: int, inputs: int) -> Tensor:
        """The int8 weight [N, K], on the CPU."""
        names = self.buffers if self.reads_anything else self.packed_names
        tensors = [buffers[name] for name in names]
        weight: Tensor = self.unpack(*(each.cpu() if each.is_cuda else each for each in tensors), outputs, inputs)
        return weight


def register_shapes(format: Format) -> None:
    """Registers fake kernels of a format's operators (shapes and types alone), for torch.compile and torch.export.

    Where this build has no kernels for a GPU, it also registers the error that says so.
    """

    def pack(weight: Tensor) -> tuple[Tensor, ...]:
        outputs, inputs = weight.shape
        sizes = format.sizes(outputs, inputs)
        buffers = [
            weight.new_empty(sizes[name] if name in sizes else _unknown_size(), dtype=buffer.dtype)
            for name, buffer in format.buffers.items()
        ]
        return (*buffers, weight.new_empty(outputs, dtype=torch.int32))

    def unpack(*arguments: Any) -> Tensor:
        buffer, outputs, inputs = arguments[0], *arguments[-2:]
        weight: Tensor = buffer.new_empty((outputs, inputs), dtype=torch.int8)
        return weight

    def linear(input: Tensor, *arguments: Any) -> Tensor:
        scales, _, inputs = arguments[-3:]
        return _linear(input, scales, inputs)

    for operator, shapes in ((format.pack, pack), (format.unpack, unpack), (format.linear, linear)):
        torch.library.register_fake(operator, shapes)  # type: ignore[arg-type]
    ops.refuse_on_gpu(format.linear)


def _unknown_size() -> torch.SymInt:
    return torch.library.get_ctx().new_dynamic_size()


def _linear(input: Tensor, scales: Tensor, inputs: int) -> Tensor:
    if input.dtype not in (torch.float32, torch.bfloat16):
        raise RuntimeError(f"mempool: `input` has to be float32 or bfloat16, and is {input.dtype}.")
    if input.device != scales.device:  # also where one is on the meta device: a weight that was never loaded
        raise RuntimeError(f"mempool: `input` is on {input.device}, and the layer's weight on {scales.device}.")
    if input.dim() < 1 or scales.dim() != 1:
        raise RuntimeError("mempool: `input` has to have a last dimension, and `scales` one dimension.")
    torch._check(input.shape[-1] == inputs)  # type: ignore[no-untyped-call]
    return input.new_empty([*input.shape[:-1], scales.shape[0]])
