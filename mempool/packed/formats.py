"""The buffers of packed layers: their names and types, how they are made of a Linear, and what makes them sound."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor, nn

from mempool.packed import ops

VERSION = 1
PATTERNS = ("dense", "unstructured", "block4", "2:4")  # by their number in `format`: none may change
DTYPES = {
    "format": torch.int32,
    "panels": torch.uint8,
    "masks": torch.uint8,
    "values": torch.uint8,
    "offsets": torch.int32,
    "places": torch.int32,
    "sums": torch.int32,
    "scales": torch.float32,
    "bias": torch.float32,
    "input_scale": torch.float32,
}


def buffer_names(pattern: str) -> tuple[str, ...]:
    return ("format", *packed_names(pattern), "scales")


def packed_names(pattern: str) -> tuple[str, ...]:
    """What packing makes of a weight, and unpacking and checking take, in their order."""
    sparse = ("masks", "values", "offsets", "sums")
    return {"dense": ("panels", "sums"), "2:4": ("values", "places", "sums")}.get(pattern, sparse)


def check(pattern: str, buffers: dict[str, Tensor], outputs: int, inputs: int) -> None:
    """Raises RuntimeError unless the buffers are a weight of this shape. Those on the meta device hold nothing."""
    buffers = {name: buffer if buffer.is_meta else buffer.cpu() for name, buffer in buffers.items()}
    for name, elements in (("scales", outputs), ("bias", outputs), ("input_scale", inputs)):
        if name in buffers and buffers[name].shape != (elements,):
            raise RuntimeError(f"`{name}` has shape {tuple(buffers[name].shape)}, and needs {(elements,)}.")
        if name in buffers and not buffers[name].is_meta and not _is_finite(buffers[name]):
            raise RuntimeError(f"`{name}` has a NaN or an infinite value.")
    if any(buffer.is_meta for buffer in buffers.values()):
        return
    packed = (buffers[name] for name in packed_names(pattern))
    getattr(torch.ops.mempool, f"check_{operator(pattern)}")(*packed, outputs, inputs)


def _is_finite(numbers: Tensor) -> bool:
    """Of float32 on the CPU. By its ends, a NaN is both: thousands of small layers take their time in single calls."""
    return not numbers.numel() or all(math.isfinite(end.item()) for end in torch.aminmax(numbers))


def operator(pattern: str) -> str:
    return {"dense": "int8", "unstructured": "bitmap", "block4": "block4", "2:4": "sparse24"}[pattern]


def empty(pattern: str, in_features: int, out_features: int, bias: bool, device: Any) -> dict[str, Tensor]:
    """Buffers of a weight that is all zero."""
    if any(isinstance(size, bool) or not isinstance(size, numbers.Integral) for size in (in_features, out_features)):
        raise TypeError(f"in_features and out_features are whole numbers, not {in_features!r} and {out_features!r}.")
    if not 1 <= in_features <= ops.MOST_INPUTS or out_features < 0:
        raise ValueError(
            f"a packed layer has 1 to {ops.MOST_INPUTS} inputs, and at least 0 outputs; asked for {in_features} and "
            f"{out_features}."
        )
    sizes = ops.packed_sizes(pattern, out_features, in_features)
    if pattern in ("unstructured", "block4"):
        sizes["values"] = 64 if pattern == "unstructured" else 0  # a vector may be read from the end of a bitmap's
    sizes |= {"sums": out_features, "scales": out_features}
    if bias:
        sizes["bias"] = out_features
    buffers = {name: torch.zeros(size, dtype=DTYPES[name], device=device) for name, size in sizes.items()}
    if pattern == "2:4":
        buffers["places"].fill_(0x44444444)  # 0 and 1, in each four bits
    return {"format": header_of(pattern, out_features, in_features, device), **buffers}


_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def require_packable(linear: nn.Linear) -> None:
    """Raises ValueError for a layer whose weight or bias is none that can be packed, as ``quantized_of`` would."""
    for name, tensor in _dense_tensors(linear).items():
        _require_finite(name, tensor)


def _dense_tensors(linear: nn.Linear) -> dict[str, Tensor]:
    """The weight [N, K] that a layer multiplies by, and its bias; ValueError for a kind that is not packed."""
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


def _require_finite(name: str, tensor: Tensor) -> None:
    """As float32, in which all is packed: float64 reaches further."""
    if tensor.numel() and not all(math.isfinite(end.float().item()) for end in torch.aminmax(tensor)):  # copies nothing
        row = int((~torch.isfinite(tensor.float())).nonzero()[0, 0])
        raise ValueError(f"`{name}` has a NaN or an infinite value in row {row}, as float32.")


def _unmasked(linear: nn.Linear, name: str) -> Tensor:
    """A tensor of the layer. torch's pruning makes it anew at each forward, so what is there may be an old one."""
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


def header_of(pattern: str, outputs: int, inputs: int, device: Any = None) -> Tensor:
    return torch.tensor([VERSION, PATTERNS.index(pattern), outputs, inputs], dtype=torch.int32, device=device)


def _sparse_bytes(quantized: Tensor, pattern: str) -> float:
    """About what the masks and values of an int8 weight [N, K] take."""
    outputs, inputs = quantized.shape
    if pattern == "unstructured":
        return outputs * inputs / 8 + int(quantized.count_nonzero())
    padded = nn.functional.pad(quantized, (0, -inputs % 4)).contiguous()
    return outputs * inputs / 32 + 4 * int(padded.view(torch.int32).count_nonzero())


def smaller(quantized: Tensor) -> tuple[str, float]:
    """The sparse pattern with fewer bytes of those that every device runs, and how many they are."""
    sizes = {pattern: _sparse_bytes(quantized, pattern) for pattern in ("unstructured", "block4")}
    pattern = min(sizes, key=lambda name: sizes[name])
    return pattern, sizes[pattern]


def is_two_of_four(quantized: Tensor) -> bool:
    """Whether two of each four inputs of an int8 weight [N, K] are not zero at most."""
    outputs, inputs = quantized.shape
    fours = nn.functional.pad(quantized, (0, -inputs % 4)).view(outputs, (inputs + 3) // 4, 4)
    return not bool((fours.count_nonzero(dim=2) > 2).any())


# Of the bytes of a pattern that multiplies faster, for many tokens: a smaller one has to save more than the rest.
_WORTH = 0.8


def pattern_for(quantized: Tensor, target: str) -> str:
    """The pattern of an int8 weight [N, K] that is packed for a target, "cpu" or "cuda"."""
    # Blocks have a byte for each weight that is not zero, at least, and bitmaps have bigger masks than blocks.
    if quantized.numel() / 32 + int(quantized.count_nonzero()) > _WORTH * quantized.numel():
        return "dense"  # 2:4 has half of them at most
    sparse, sparse_bytes = smaller(quantized)
    if target == "cuda":
        tiles = ops.packed_sizes("2:4", *quantized.shape)
        bytes_24 = tiles["values"] + 4 * tiles["places"]
        is_worth_it = bytes_24 <= _WORTH * quantized.numel() and sparse_bytes > _WORTH * bytes_24
        if is_worth_it and is_two_of_four(quantized):
            return "2:4"
    return sparse if sparse_bytes <= _WORTH * quantized.numel() else "dense"


def require_target(target: str) -> None:
    if target not in ("cpu", "cuda"):
        raise ValueError(f"the target is 'cpu' or 'cuda', not {target!r}.")
