"""The warning about layers that ``convert`` leaves dense: without it a model that did not shrink looks converted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from mempool.compress.holders import found_elsewhere
from mempool.compress.layers import not_skipped, some
from mempool.packed.linear import Int8Linear, SparseInt8Linear

WEIGHT_SHARED = "another module has the weight, too, of"
_PACKED = (Int8Linear, SparseInt8Linear)


def left_alone(
    model: nn.Module, layers: Mapping[str, nn.Linear], read: set[str], skip: Sequence[str]
) -> dict[str, list[str]]:
    """The names of modules that have the weight of a linear layer and are not among ``layers``, by the reason.

    ``read``: layers that stay dense since the model's code reads their weights. Modules that ``skip`` names are not
    listed.
    """
    reasons: dict[str, list[str]] = {}
    modules = not_skipped(model, skip)
    for name, module in modules.items():
        if name not in layers and (reason := _reason(module, name in read)) is not None:
            reasons.setdefault(reason, []).append(name or "the model")
    inside = {id(module) for module in model.modules()}
    found = {id(module): where for where, module in found_elsewhere(model, nn.Module) if type(module) is nn.Linear}
    hidden = [where for key, where in found.items() if key not in inside]
    if hidden:
        reasons["outside of the model's modules are Linears in"] = hidden
    return reasons


def _reason(module: nn.Module, is_read: bool) -> str | None:
    if is_read:
        return "the model's code reads the weight of"
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    if type(module) is nn.Linear:
        return WEIGHT_SHARED
    if isinstance(module, nn.Linear):
        return f"of {kind}, a subclass of torch.nn.Linear, are"
    if isinstance(module, torch.jit.ScriptModule):
        return (
            f"of {kind}, made of torch.nn.Linear, are" if getattr(module, "original_name", None) == "Linear" else None
        )
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag, *_PACKED)):
        return None
    weight = module._parameters.get("weight")
    if weight is not None and weight.dim() == 2:
        return f"of {kind}, no torch.nn.Linear, are"
    return None


def warn_of(model: nn.Module, reasons: Mapping[str, Sequence[str]], is_any_packed: bool, by: str = "convert") -> None:
    """Warns the caller of ``convert`` or ``load`` in one line, before any change, as a warning may be an error."""
    parts = [f"{reason} {some(names)}" for reason, names in reasons.items()]
    if not is_any_packed:
        if not parts:
            parts = [_nothing_there(model)]
        done = "converted" if by == "convert" else "packed"
        warnings.warn(f"nothing was {done}: {'; '.join(parts)}.", stacklevel=3)
    elif parts:
        warnings.warn(f"{by} left alone: {'; '.join(parts)}.", stacklevel=3)


def _nothing_there(model: nn.Module) -> str:
    if any(type(module) is nn.Linear for module in model.modules()):
        return "each torch.nn.Linear is one of skip"
    held = (module for module in model.modules() if any(value is not None for value in module._parameters.values()))
    return f"there is no torch.nn.Linear; what has parameters is {some(sorted({type(m).__name__ for m in held}))}"
