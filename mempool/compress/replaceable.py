"""Finds what a model would lose if one of its layers were replaced, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from mempool.compress import holders

# Classes that hold parameters of the model themselves: they would go on with parameters that are gone, or mix them up.
_WRAPPERS = {
    "torch.nn.parallel.distributed.DistributedDataParallel": "convert the model before it is wrapped",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "convert the model unsharded",
    "torch.distributed.fsdp.FSDPModule": "convert the model unsharded",
    "torch.optim.swa_utils.AveragedModel": "convert its .module, when nothing is averaged any more",
    "deepspeed.runtime.engine.DeepSpeedEngine": "convert its .module, unsharded",
}
_OWN_TENSORS = {"weight", "bias", "weight_orig", "bias_orig", "weight_mask", "bias_mask"}


def require_replaceable(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Raises ValueError, naming the layer, if replacing a layer would change what the model does.

    That is so where the layer has hooks, methods, tensors or modules of its own, where torch's own code for it was
    patched, and where an object beside the model's modules holds the layer.
    """
    names = {id(layer): name for name, layer in layers.items()}
    for path, module in model.named_modules():
        _require_no_wrapper(path, module, names)
    for name, layer in layers.items():
        require_nothing_lost(name, layer)
    for where, layer in holders.found_elsewhere(model, nn.Module):
        if (found := names.get(id(layer))) is not None:
            raise ValueError(
                f"layer {found!r} is also held by {where}, outside of the model's modules, which would go on with the "
                f"old weight: let it reach the layer through its parent, or leave the layer as it is: skip=[{found!r}]."
            )


def require_weights_unshared(model: nn.Module, layers: Mapping[str, nn.Linear]) -> None:
    """Raises ValueError, naming the layer, if another tensor of the model shares memory with its weight or bias.

    That tensor would keep the old values once the layer is replaced by one with other values.
    """
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        for tensor in layer.parameters():
            owners[_storage_of(tensor)] = name
    buffers = ((f"the buffer {name!r}", buffer) for name, buffer in model.named_buffers())
    own = {id(buffer) for layer in layers.values() for buffer in layer.buffers()}  # masks of pruning
    for where, held in (*buffers, *holders.found_elsewhere(model, Tensor)):
        if id(held) not in own and (owner := owners.get(_storage_of(held))) is not None:
            raise ValueError(
                f"layer {owner!r} shares the memory of its weight with {where}, which would go on with the old weight: "
                f"let it read layer.weight when it runs, or leave the layer as it is: skip=[{owner!r}]."
            )


def _storage_of(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # a tensor without storage: a sparse one, for one
        return id(tensor)


def require_nothing_lost(name: str, layer: nn.Module) -> None:
    """Raises ValueError if replacing a layer would lose something that belongs to it: see ``lost_with``."""
    if (lost := lost_with(layer)) is not None:
        raise ValueError(f"layer {name!r} {lost}, or leave the layer as it is: skip=[{name!r}].")


def lost_with(layer: nn.Module) -> str | None:
    """What would be lost with a layer that is replaced, and what to do about it; None if nothing would be."""
    kind = type(layer)
    if kind is nn.Linear and (patched := _patched()) is not None:
        return f"would lose what {patched} does, set in the place of torch's own: undo that"
    own = vars(layer)
    if own.get("_hf_hook") is not None:
        return "has a hook of accelerate, which would be lost: accelerate.hooks.remove_hook_from_module(layer)"
    for name, value in own.items():
        if name.endswith("_hooks") and value and not (kind is nn.Linear and _are_of_pruning(value)):
            return f"has {name.strip('_').replace('_', ' ')}, which a packed one would lose: remove them"
        if callable(getattr(kind, name, None)) and not _is_unchanged(layer, name, value):
            return f"has a {name!r} of its own, which a packed one would lose: remove it"
    if own.get("_compiled_call_impl") is not None:
        return "is compiled, which a packed one would lose: convert the model, and compile it then"
    if kind is nn.Linear:
        extra = [*(own["_parameters"].keys() | own["_buffers"].keys()) - _OWN_TENSORS, *own["_modules"]]
    else:
        extra = [*own["_parameters"].keys() - {"placeholder"}, *own["_modules"]]
    if extra:
        return f"has {', '.join(sorted(extra))}, which a packed one would lose: remove it"
    return None


def _patched() -> str | None:
    """The name of the method of torch's Linear that was patched; None if none was."""
    code = getattr(nn.Linear.forward, "__code__", None)
    if getattr(code, "co_filename", None) != nn.Identity.forward.__code__.co_filename:
        return _name_of(nn.Linear.forward)
    if "__call__" in vars(nn.Linear):
        return _name_of(nn.Linear.__call__)
    if nn.functional.linear is not torch._C._nn.linear:
        return _name_of(nn.functional.linear)
    return None


def _name_of(function: Any) -> str:
    code = getattr(function, "__code__", None)
    where = f" of {code.co_filename}" if code is not None else ""
    return f"{getattr(code, 'co_qualname', None) or getattr(function, '__name__', repr(function))}{where}"


def _are_of_pruning(hooks: Mapping[int, Any]) -> bool:
    """Whether all hooks belong to torch's pruning: they mask weight or bias, and packing reads the masked tensors."""
    return all(isinstance(hook, prune.BasePruningMethod) for hook in hooks.values())


def _is_unchanged(layer: nn.Module, name: str, value: Any) -> bool:
    """Whether an attribute of the layer is its class's own method of that name (accelerate leaves such attributes)."""
    return isinstance(value, MethodType) and value.__self__ is layer and value.__func__ is getattr(type(layer), name)


def _require_no_wrapper(path: str, module: nn.Module, names: Mapping[int, str]) -> None:
    for kind in type(module).__mro__:
        advice = _WRAPPERS.get(f"{kind.__module__}.{kind.__qualname__}")
        if advice is None:
            continue
        if (layer := next((names[id(inner)] for inner in module.modules() if id(inner) in names), None)) is not None:
            where = f" {path!r}" if path else ""
            raise ValueError(f"layer {layer!r} is in {kind.__name__}{where}, which keeps its parameters: {advice}.")
