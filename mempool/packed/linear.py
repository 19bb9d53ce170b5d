"""Linear layers whose weights stay compressed while they are used: ``Int8Linear`` and ``SparseInt8Linear``.

Weights are int8 with one float32 scale for each output (per channel); activations are quantized to int8 in each call,
with one scale for each token (row); products are summed in int32. Sparse weights keep only what is not zero. The
buffers are the same bytes on every machine and for every number of threads; a state dict of them loads anywhere. Layers
are packed on the CPU and run there or, moved with ``.to("cuda")``, on a GPU of compute capability 8.0 or higher, with
the same outputs; the pattern 2:4 is for GPUs alone. Layers are for inference only: no gradient flows through them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mempool import _core
from mempool.packed.format import VERSION, Format
from mempool.packed.formats import (
    DENSE,
    FORMATS,
    format_for,
    format_of,
    is_header,
    require_target,
    smallest_sparse,
    sparse_format,
)
from mempool.packed.quantizing import quantized_of

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Int8Linear", "SparseInt8Linear", "pack_linear"]

_FLOATS = ("scales", "bias", "input_scale")
_PLACEHOLDER = "placeholder"
_CAST = (torch.float32, torch.bfloat16, torch.float16)  # the types that autocast casts
_DENSE = ("weight", "weight_orig", "weight_mask")


class _PackedLinear(nn.Module):
    """The base of the packed layers: it holds their buffers and runs them.

    A layer has, beside the buffers of its format, ``format`` (int32: version, pattern, N, K), ``sums`` (int32 [N]),
    ``scales`` (float32 [N]), ``bias`` (float32 [N]) if there is one, and ``input_scale`` (float32 [K]) if activations
    are multiplied by it first.

    ``placeholder`` is an empty parameter of the dense weight's type, so that code which asks
    ``next(model.parameters())`` for a type and a device gets those of the dense layer. A state dict may lack it. After
    ``to_empty`` the weight is zero, as in a new layer, until one is loaded.
    """

    in_features: int
    out_features: int
    name_in_model: str | None = None  # its name in the model, where ``compress.convert`` made it
    placeholder: nn.Parameter
    pattern: str  # the name of its format

    def __init__(
        self,
        format: Format,
        in_features: int,
        out_features: int,
        bias: bool,
        buffers: dict[str, Tensor],
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.pattern = format.pattern
        self.in_features = in_features
        self.out_features = out_features
        self._buffers.update({**({} if bias else {"bias": None}), "input_scale": None, **buffers})
        self.stand_for(dtype or torch.get_default_dtype())

    def stand_for(self, dtype: torch.dtype) -> None:
        """Makes the placeholder for a dense weight of this type, on the device of the packed one."""
        device = self._buffers["scales"].device  # type: ignore[union-attr]
        known = self._parameters.get(_PLACEHOLDER)
        if known is not None and (known.dtype, known.device) == (dtype, device):
            return
        empty = torch.empty(0, dtype=dtype, device=device)
        self._parameters[_PLACEHOLDER] = nn.Parameter(empty, requires_grad=False)

    @classmethod
    def _packed(
        cls, linear: nn.Linear | _PackedLinear, format: Format, quantized: Tensor, buffers: dict[str, Tensor]
    ) -> Self:
        """A layer in the place of ``linear``, from the int8 weight and the buffers that ``quantized_of`` returned."""
        layer = cls.__new__(cls)
        packed = dict(zip(format.packed_names, format.pack(quantized), strict=True))
        header = format.header(linear.out_features, linear.in_features, quantized.device)
        buffers = {"format": header, **packed, **buffers}
        has_bias = linear.bias is not None
        dtype = (linear.weight if isinstance(linear, nn.Linear) else linear.placeholder).dtype
        _PackedLinear.__init__(layer, format, linear.in_features, linear.out_features, has_bias, buffers, dtype)
        return layer.train(linear.training)

    @property
    def _format(self) -> Format:
        return FORMATS[self.pattern]

    @property
    def packed_bytes(self) -> int:
        """Bytes of all buffers of this layer."""
        return sum(buffer.nbytes for buffer in self._buffers.values() if buffer is not None)

    @property
    def density(self) -> float:
        """The share of weights that are kept, 0 to 1. For ``block4`` whole blocks count; NaN on the meta device."""
        if self.get_buffer("sums").is_meta:
            return float("nan")
        return min(1.0, self._format.kept(self._buffers) / max(1, self.in_features * self.out_features))

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        if self._format.is_sparse:
            text += f", pattern={self.pattern}"
        return f"{text}, {_core.format_bytes(self.packed_bytes)}"  # without the density, for which all weights are read

    def _unpacked(self) -> Tensor:
        return self._format.unpacked(self._buffers, self.out_features, self.in_features)

    def dequantize(self) -> Tensor:
        """The weight as float32 [out_features, in_features], for inputs that are not multiplied by ``input_scale``."""
        scales, input_scale = self.get_buffer("scales"), self._buffers["input_scale"]
        weight = self._unpacked().float() * _off_gpu(scales).unsqueeze(1)  # weights are unpacked on the CPU
        if input_scale is not None:
            weight = weight * _off_gpu(input_scale)
        return weight.to(scales.device)

    def forward(self, input: Tensor) -> Tensor:
        device = input.device.type
        if device in ("cpu", "cuda") and torch.is_autocast_enabled(device) and input.dtype in _CAST:
            input = input.to(torch.get_autocast_dtype(device))  # as for a dense layer: outputs have that type, too
        scale = self._buffers["input_scale"]
        if scale is None and input.dtype is torch.float32:
            return self._multiplied(input)
        computed = input.float() if input.dtype in (torch.float16, torch.float64) else input
        if scale is not None:
            computed = computed * scale.to(computed.dtype)
        return self._multiplied(computed).to(input.dtype)

    def _multiplied(self, input: Tensor) -> Tensor:
        buffers, format = self._buffers, FORMATS[self.pattern]
        packed = [buffers[name] for name in format.packed_names]
        output: Tensor = format.linear(input, *packed, buffers["scales"], buffers["bias"], self.in_features)
        return output

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _PackedLinear:
        """As in every module, but buffers never change their type, and ``to_empty`` makes a weight of zeros."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        device = self.get_buffer("scales").device
        was_meta = any(old is not None and old.is_meta for old in before.values())
        if device.type != "meta" and (was_meta or getattr(fn, "__qualname__", "").startswith("Module.to_empty.")):
            # Uninitialized memory would be taken for masks and offsets, by which kernels read.
            zero = self._format.zero(self.in_features, self.out_features, self.bias is not None, device)
            self._buffers.update({"input_scale": None, **zero})
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name not in _DENSE:
                raise
            known = self.__dict__.get("name_in_model")
            raise AttributeError(
                f"{error}: its weight is packed, and this code reads a dense one. Leave the layer as it is, by "
                f"convert(model, skip=[{repr(known) if known else 'its name'}]) or load(..., skip=...); "
                "dequantize() makes a dense copy.",
                name=name,
                obj=self,
            ) from None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if _PLACEHOLDER not in self._parameters:  # pickled before there was one
            self.stand_for(torch.float32)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Loads buffers of any density after checking them. Where they are not sound, the layer stays as it was."""
        given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        layer = prefix.removesuffix(".") or type(self).__name__
        format, problem = self._format_of(given.get("format"))
        if format is None:
            error_msgs.append(f"{layer}: {problem}")
            return
        wanted = [*format.stored_names, *(["bias"] if self.bias is not None else [])]
        missing = [name for name in wanted if name not in given]
        missing_keys.extend(prefix + name for name in missing)
        if strict:
            unexpected_keys.extend(
                prefix + name for name in given if name not in (*wanted, "input_scale", _PLACEHOLDER)
            )
        if missing:
            return
        names = [*wanted, *(["input_scale"] if "input_scale" in given else [])]
        try:
            assign = bool(local_metadata.get("assign_to_params_buffers", False))
            buffers = {name: self._taken(name, given[name], format.dtype_of(name), assign) for name in names}
            format.require_sound(buffers, self.out_features, self.in_features)
        except (RuntimeError, TypeError) as error:
            error_msgs.append(f"{layer}: {str(error).removeprefix('mempool: ')}")
            return
        for name in [name for name in self._buffers if name not in ("bias", "input_scale")]:
            del self._buffers[name]
        self._buffers.update({"input_scale": None, **buffers})
        self.pattern = format.pattern
        dtype = given[_PLACEHOLDER].dtype if assign and _PLACEHOLDER in given else self.placeholder.dtype
        self.stand_for(dtype)

    def _format_of(self, header: Tensor | None) -> tuple[Format | None, str]:
        """The format of the weight to be loaded; or None, and why it cannot be loaded."""
        if header is None:
            return self._format, ""  # the caller reports all missing buffers at once
        if not is_header(header):
            return None, "`format` has to be 4 numbers of int32."
        version, number, outputs, inputs = header.tolist()
        format = format_of(header)
        if format is None:
            return None, f"its format is {version}.{number}, and this mempool reads version {VERSION}."
        if (outputs, inputs) != (self.out_features, self.in_features):
            return None, (
                f"its weight has {outputs} outputs and {inputs} inputs, and this layer has {self.out_features} outputs "
                f"and {self.in_features} inputs."
            )
        if format.is_sparse != self._format.is_sparse:
            return None, f"its weight is {format.pattern}, and this layer is {self.pattern}."
        return format, ""

    def _taken(self, name: str, value: Tensor, dtype: torch.dtype, assign: bool) -> Tensor:
        """A copy of a buffer for this layer; with ``assign`` the buffer itself, where kernels can read it in place."""
        if value.dtype != dtype:
            raise TypeError(f"`{name}` has to be {dtype}, and is {value.dtype}.")
        alignment = 16 if value.is_cuda else 8  # bytes
        if assign and value.is_contiguous() and (value.is_meta or value.data_ptr() % alignment == 0):
            return value.detach()
        sums = self.get_buffer("sums")
        taken = torch.empty(value.shape, dtype=value.dtype, device=value.device if sums.is_meta else sums.device)
        return taken.copy_(value.detach())


class Int8Linear(_PackedLinear):
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


class SparseInt8Linear(_PackedLinear):
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


def _off_gpu(tensor: Tensor) -> Tensor:
    return tensor.cpu() if tensor.is_cuda else tensor


def class_for(header: Any) -> type[Int8Linear | SparseInt8Linear]:
    """The class of the layer with this ``format`` buffer; the sparse class where the buffer cannot be read."""
    format = format_of(header)
    return SparseInt8Linear if format is None or format.is_sparse else Int8Linear


def runs_on(layer: nn.Module, target: str) -> bool:
    """Whether a module runs on a target: a packed layer where its format does, any other module always."""
    return not isinstance(layer, _PackedLinear) or target in layer._format.targets


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
