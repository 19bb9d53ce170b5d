"""Where each module of a model is held, so that one can be put in the place of another."""

from __future__ import annotations

import sys

import torch
from torch import nn

from mempool.packed.linear import Int8Linear, SparseInt8Linear


class ModuleTree:
    """Who holds each module of a model under which name: found in one walk, kept up to date by ``replace``.

    Holds no module but the model and those that have children, so that what was replaced is freed. A model whose
    modules are exchanged by something else meanwhile needs a new one.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._holders: dict[int, list[tuple[nn.Module, str]]] = {}  # by the id of what is held
        self._encoders: dict[int, list[nn.TransformerEncoder]] = {}  # by the id of a module in them
        for parent in model.modules():
            for name, child in parent._modules.items():
                if child is not None:
                    self._holders.setdefault(id(child), []).append((parent, name))
            if isinstance(parent, nn.TransformerEncoder):
                for inner in parent.modules():
                    self._encoders.setdefault(id(inner), []).append(parent)

    def replace(self, old: nn.Module, new: nn.Module) -> None:
        """Puts ``new``, which has no children, wherever ``old`` is in the model."""
        if isinstance(old, nn.Linear) and isinstance(new, (Int8Linear, SparseInt8Linear)):
            new.stand_for(old.weight.dtype)
        holders = self._holders.pop(id(old), [])
        for parent, name in holders:
            parent._modules[name] = new
            _leave_fused_paths(parent)
            if is_compiled(parent):
                # As a copy of it does: its code was that of the old module.
                parent.__setstate__(parent.__getstate__())  # type: ignore[no-untyped-call]
        self._holders.setdefault(id(new), []).extend(holders)
        if (encoders := self._encoders.pop(id(old), None)) is not None:
            for encoder in encoders:  # it reads the weights of its first layer, to hand whole sequences to fused code
                encoder.use_nested_tensor = False
            self._encoders[id(new)] = encoders


def is_compiled(module: nn.Module) -> bool:
    """Whether it is what ``torch.compile(module)`` returns."""
    return "torch._dynamo" in sys.modules and isinstance(module, torch._dynamo.OptimizedModule)


def _leave_fused_paths(parent: nn.Module) -> None:
    """torch's encoder layer has fused code that reads the weights of its Linears: with this it stays away from it."""
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0
