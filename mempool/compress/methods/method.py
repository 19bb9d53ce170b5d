"""What a pruning method is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

# Name of a layer, its new weight [N, K] float32, and the boolean mask of what stays.
Pruned: TypeAlias = "tuple[str, Tensor, Tensor]"


@dataclass(frozen=True)
class Layers:
    """The layers that are to be pruned, apart from where their weights are."""

    model: nn.Module  # what calibration data goes through: layers of it may be packed, and replaced while a method runs
    shapes: Mapping[str, tuple[int, int]]  # (N, K) by name
    weight_of: Callable[[str], Tensor]  # float32 [N, K], which a method may change


@dataclass(frozen=True)
class Settings:
    """What to prune them to."""

    sparsity: float  # the share that goes, 0 to 1
    pattern: str  # one of masks.PATTERNS
    batches: Sequence[Any]  # of calibration data


@dataclass(frozen=True)
class Method:
    """A way to choose the weights that go."""

    name: str
    prune: Callable[[Layers, Settings], Iterator[Pruned]]  # one layer after the other, in their order
    needs_calibration: bool
    changes_weights: bool  # those that stay, too
