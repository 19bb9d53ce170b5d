"""Quantizes a Linear for packing: its weight becomes int8, and buffers are made that every format has."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mempool.packed import ops

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def require_packable(linear: nn.Linear) -> None:
    """Raises ValueError for a layer whose weight or bias cannot be packed, as ``quantized_of`` would."""
    for name, tensor in _dense_tensors(linear).items():
        _require_finite(name, tensor)


def _dense_tensors(linear: nn.Linear) -> dict[str, Tensor]:
    """The weight [N, K] that a layer multiplies by, and its bias. Raises ValueError for a kind that is not packed."""
    if not 1 <= linear.in_features <= ops.MOST_INPUTS:
        raise ValueError(f"a packed layer has 1 to {ops.MOST_INPUTS} inputs, and it has {linear.in_features}.")
    tensors = {"weight": _unmasked(linear, "weight")}
    if linear.bias is not None:
        tensors["bias"] = _unmasked(linear, "bias")
    for name, tensor in tensors.items():
        shape = (linear.out_features, linear.in_features)[: 2 if name == "weight" else 1]
        if tensor.device.type != "cpu":
            raise ValueError(f"its {name} is on {tensor.device}: packing is done on the CPU, move the layer there.")
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
            raise ValueError(f"its {name} is a {type(tensor).__name__} ({tensor.layout}), not a plain tensor.")
        if tensor.dtype not in _FLOATS:
            raise ValueError(f"its {name} is {tensor.dtype}: quantized already, or no number that is packed.")
        if tensor.shape != shape:
            raise ValueError(f"its {name} has shape {tuple(tensor.shape)}, and the layer is made for {shape}.")
    return tensors


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite as float32, in which scales are computed: float64 has a larger range.

    The minimum and the maximum tell, since either is NaN where any number is. Computing them copies nothing, and takes
    few calls for each of thousands of small layers.
    """
    return not tensor.numel() or all(math.isfinite(end.float().item()) for end in torch.aminmax(tensor))


def _require_finite(name: str, tensor: Tensor) -> None:
    if not is_finite(tensor):
        row = int((~torch.isfinite(tensor.float())).nonzero()[0, 0])
        raise ValueError(f"`{name}` has a NaN or an infinite value in row {row}, as float32.")


def _unmasked(linear: nn.Linear, name: str) -> Tensor:
    """A tensor of the layer, masked anew: torch's pruning does that at each forward, so the attribute may be stale."""
    mask = linear._buffers.get(f"{name}_mask")
    if mask is None:
        tensor: Tensor = getattr(linear, name).detach()
        return tensor
    return (linear.get_parameter(f"{name}_orig") * mask).detach()


def quantized_of(linear: nn.Linear, input_scale: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """A layer's weight as int8 [N, K], and the buffers that do not depend on its format."""
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"from_linear takes a torch.nn.Linear, not {type(linear).__name__}.")
    tensors = _dense_tensors(linear)
    weight = tensors["weight"].float()
    buffers: dict[str, Tensor] = {}
    if input_scale is not None:
        if not isinstance(input_scale, Tensor):
            raise TypeError(f"`input_scale` is a tensor of {linear.in_features}, not {type(input_scale).__name__}.")
        if input_scale.shape != (linear.in_features,) or not bool((input_scale.isfinite() & (input_scale != 0)).all()):
            raise ValueError(f"`input_scale` has to be {linear.in_features} finite numbers, none of them zero.")
        buffers["input_scale"] = input_scale.detach().to("cpu", torch.float32, copy=True)
        weight = weight / buffers["input_scale"]
    if "bias" in tensors:
        _require_finite("bias", tensors["bias"])
        buffers["bias"] = tensors["bias"].to(torch.float32, copy=True)
    try:
        quantized, buffers["scales"] = torch.ops.mempool.quantize_weight(weight.contiguous())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(str(error).removeprefix("mempool: ")) from error
    return quantized, buffers
