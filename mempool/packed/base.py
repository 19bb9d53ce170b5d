"""The base class of packed Linear layers: it holds their buffers, runs them, and loads and checks state dicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mempool import _core
from mempool.packed.format import VERSION, Format
from mempool.packed.formats import FORMATS, format_of, is_header

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PackedLinear"]

_PLACEHOLDER = "placeholder"
_CAST = (torch.float32, torch.bfloat16, torch.float16)  # the types that autocast casts
_DENSE = ("weight", "weight_orig", "weight_mask")


class PackedLinear(nn.Module):
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
        cls, linear: nn.Linear | PackedLinear, format: Format, quantized: Tensor, buffers: dict[str, Tensor]
    ) -> Self:
        """A layer in the place of ``linear``, from the int8 weight and the buffers that ``quantized_of`` returned."""
        layer = cls.__new__(cls)
        packed = dict(zip(format.packed_names, format.pack(quantized), strict=True))
        header = format.header(linear.out_features, linear.in_features, quantized.device)
        buffers = {"format": header, **packed, **buffers}
        has_bias = linear.bias is not None
        dtype = (linear.weight if isinstance(linear, nn.Linear) else linear.placeholder).dtype
        PackedLinear.__init__(layer, format, linear.in_features, linear.out_features, has_bias, buffers, dtype)
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
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


def _off_gpu(tensor: Tensor) -> Tensor:
    return tensor.cpu() if tensor.is_cuda else tensor
