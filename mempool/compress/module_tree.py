"""Knows which modules of a model hold each other module, so that one can be replaced wherever it is."""

from __future__ import annotations

import sys

import torch
from torch import nn

from mempool.packed.linear import Int8Linear, SparseInt8Linear


class ModuleTree:
    """The holders of each module of a model, with its name in each: found in one walk, kept up to date by ``replace``.

    The tree refers only to the model and to modules that have children, so that a replaced module is freed. If other
    code exchanges modules of the model, a new tree is needed.
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
                # Compiled code is that of the old module: remove it, as a copy of the module would.
                parent.__setstate__(parent.__getstate__())  # type: ignore[no-untyped-call]
        self._holders.setdefault(id(new), []).extend(holders)
        if (encoders := self._encoders.pop(id(old), None)) is not None:
            for encoder in encoders:  # it reads the weights of its first layer, to hand whole sequences to fused code
                encoder.use_nested_tensor = False
            self._encoders[id(new)] = encoders


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is the result of ``torch.compile(module)``."""
    return "torch._dynamo" in sys.modules and isinstance(module, torch._dynamo.OptimizedModule)


def _leave_fused_paths(parent: nn.Module) -> None:
    """Keeps torch's encoder layer from its fused code, which reads the weights of its Linears."""
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0
