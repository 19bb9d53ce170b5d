"""Linear layers whose weights stay compressed while they are used: ``Int8Linear`` and ``SparseInt8Linear``.

Weights are int8 with one float32 scale for each output (per channel); activations are quantized to int8 in each call,
with one scale for each token (row); products are summed in int32. Sparse weights keep only what is not zero. The
buffers are the same bytes on every machine and for every number of threads; a state dict of them loads anywhere. Layers
are packed on the CPU and run there or, moved with ``.to("cuda")``, on a GPU of compute capability 8.0 or higher, with
the same outputs; the pattern 2:4 is for GPUs alone. Layers are for inference only: no gradient flows through them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mempool.packed.base import PackedLinear
from mempool.packed.format import Format
from mempool.packed.formats import (
    DENSE,
    FORMATS,
    format_for,
    format_of,
    require_target,
    smallest_sparse,
    sparse_format,
)
from mempool.packed.quantizing import quantized_of

__all__ = ["Int8Linear", "SparseInt8Linear", "pack_linear"]

_FLOATS = ("scales", "bias", "input_scale")


class Int8Linear(PackedLinear):
    """``torch.nn.Linear`` with an int8 weight, for inference.

    Input ``[..., in_features]``, output ``[..., out_features]`` of the same type: float32 or bfloat16; float16 and
    float64 are computed as float32. A row with a NaN or an infinite value gives NaN in that row alone. A new layer's
    weight is zero: use ``from_linear`` or load one.
    """

    __module__ = "mempool.nn"  # the public path, which pickles keep
    panels: Tensor
    sums: Tensor
    scales: Tensor
    bias: Tensor | None
    input_scale: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None) -> None:
        buffers = DENSE.zero(in_features, out_features, bias, device)
        super().__init__(DENSE, in_features, out_features, bias, buffers)

    @classmethod
    def from_linear(cls, linear: nn.Linear, input_scale: Tensor | None = None) -> Int8Linear:
        """Packs the weight of ``linear``, which does not change. Memory comes from the current pool.

        ``input_scale`` (float32 [in_features]): activations are multiplied by it, and the weight is divided by it.

        Raises TypeError if ``linear`` is no Linear, ValueError if its weight is not on the CPU, has a NaN or an
        infinite value, or more than 65,536 inputs.
        """
        quantized, buffers = quantized_of(linear, input_scale)
        return cls._packed(linear, DENSE, quantized, buffers)


class SparseInt8Linear(PackedLinear):
    """``torch.nn.Linear`` with an int8 weight that keeps only what is not zero, for inference.

    ``pattern``: ``"unstructured"`` (a bit for each weight: there is less memory to read, so it is faster for up to some
    12 tokens where the density is at most a half), ``"block4"`` (a bit for each block of 4 inputs of an output: blocks
    of zeros are not multiplied, so it is faster for many tokens, too, where at least 80% of the blocks are zero) or
    ``"2:4"`` (at most two of each four inputs are kept, for sparse tensor cores: it runs on a GPU alone, and raises
    RuntimeError on the CPU). Inputs and outputs are as for ``Int8Linear``. Buffers: ``masks`` and ``offsets``, or
    ``places`` for 2:4.
    """

    __module__ = "mempool.nn"  # the public path, which pickles keep
    masks: Tensor
    offsets: Tensor
    places: Tensor
    values: Tensor
    sums: Tensor
    scales: Tensor
    bias: Tensor | None
    input_scale: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        pattern: str = "unstructured",
        device: Any = None,
    ) -> None:
        format = sparse_format(pattern)
        buffers = format.zero(in_features, out_features, bias, device)
        super().__init__(format, in_features, out_features, bias, buffers)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, pattern: str | None = None, input_scale: Tensor | None = None
    ) -> SparseInt8Linear:
        """Packs the weight of ``linear`` as ``Int8Linear.from_linear`` does, in a sparse pattern.

        ``pattern=None`` takes the one of unstructured and block4 that needs fewer bytes. Raises the errors of
        ``Int8Linear.from_linear``, and ValueError for another pattern or for a weight that is not 2:4.
        """
        format = None if pattern is None else sparse_format(pattern)
        quantized, buffers = quantized_of(linear, input_scale)
        return cls._packed(linear, _fitting(format, quantized), quantized, buffers)

    def repacked(self, pattern: str | None = None) -> SparseInt8Linear:
        """A layer with this weight in another pattern, on the same device; its outputs are the same bits.

        ``pattern=None`` takes the one of unstructured and block4 that needs fewer bytes. Scales and bias are shared
        with this layer. Raises ValueError for another pattern, a weight that is not 2:4, or a layer on the meta device.
        """
        format = None if pattern is None else sparse_format(pattern)
        if self.scales.is_meta:
            raise ValueError("a layer on the meta device has no weight to pack: load it first.")
        quantized = self._unpacked()
        return self._repacked(quantized, _fitting(format, quantized))

    def _repacked(self, quantized: Tensor, format: Format) -> SparseInt8Linear:
        rest = {name: self._buffers[name] for name in _FLOATS}
        kept = {name: buffer for name, buffer in rest.items() if buffer is not None}
        new = self._packed(self, format, quantized, kept).to(self.scales.device)
        new.name_in_model = self.name_in_model
        return new

    def for_target(self, target: str) -> SparseInt8Linear:
        """This layer, or one with its weight in the pattern that ``pack_linear`` would take for the target.

        For ``"cpu"`` only a layer of 2:4 is packed anew. A layer on the meta device stays as it is. Raises ValueError
        for an unknown target.
        """
        require_target(target)
        if self.scales.is_meta or self._format.targets == (target,):
            return self
        if target not in self._format.targets:
            return self.repacked()
        if all(format.targets != (target,) for format in FORMATS.values()):
            return self
        quantized = self._unpacked()
        format = format_for(quantized, target)
        return self._repacked(quantized, format) if format.targets == (target,) else self


def class_for(header: Any) -> type[Int8Linear | SparseInt8Linear]:
    """The class of the layer with this ``format`` buffer; the sparse class where the buffer cannot be read."""
    format = format_of(header)
    return SparseInt8Linear if format is None or format.is_sparse else Int8Linear


def runs_on(layer: nn.Module, target: str) -> bool:
    """Whether a module runs on a target: a packed layer where its format does, any other module always."""
    return not isinstance(layer, PackedLinear) or target in layer._format.targets


def _fitting(format: Format | None, quantized: Tensor) -> Format:
    """The given format, or for None the smallest sparse one. Raises ValueError where the weight does not fit it."""
    format = format or smallest_sparse(quantized)
    if (misfit := format.misfit(quantized)) is not None:
        raise ValueError(misfit)
    return format


def pack_linear(
    linear: nn.Linear, input_scale: Tensor | None = None, target: str = "cpu"
) -> Int8Linear | SparseInt8Linear:
    """Packs ``linear`` in the format that its density asks for: a sparse one where it takes a fifth less memory.

    ``target="cuda"`` takes 2:4 where the weight allows it and where that takes a fifth less memory than dense, unless
    another pattern takes yet a fifth less; a layer of 2:4 runs on a GPU alone. Layers are packed on the CPU and not
    moved. Other arguments and errors are those of ``Int8Linear.from_linear``; raises ValueError for an unknown target.
    """
    require_target(target)
    quantized, buffers = quantized_of(linear, input_scale)
    format = format_for(quantized, target)
    kind = SparseInt8Linear if format.is_sparse else Int8Linear
    return kind._packed(linear, format, quantized, buffers)
