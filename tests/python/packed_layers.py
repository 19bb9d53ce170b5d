"""Packed layers of each pattern that the CPU runs, for tests."""

from __future__ import annotations

import torch

from mempool.nn import Int8Linear, SparseInt8Linear

PATTERNS = ("dense", "unstructured", "block4")


def pruned(inputs: int = 70, outputs: int = 90, density: float = 0.3, bias: bool = True) -> torch.nn.Linear:
    """A layer with whole blocks of 4 inputs that are zero, so that every pattern has something to leave out."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(inputs, outputs, bias=bias)
    kept = (torch.rand(outputs, (inputs + 3) // 4) < density).repeat_interleave(4, dim=1)[:, :inputs]
    with torch.no_grad():
        linear.weight.mul_(kept)
    return linear


def packed(pattern: str, linear: torch.nn.Linear) -> Int8Linear | SparseInt8Linear:
    if pattern == "dense":
        return Int8Linear.from_linear(linear)
    return SparseInt8Linear.from_linear(linear, pattern)
