"""The interface of a pruning method: the layers and settings that it gets, and the weights and masks that it yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

# The name of a layer, its new weight [N, K] float32, and its boolean mask, True for weights that stay.
Pruned: TypeAlias = "tuple[str, Tensor, Tensor]"


@dataclass(frozen=True)
class Layers:
    """The layers that are to be pruned, independent of where their weights are."""

    model: nn.Module  # for calibration data; its layers may be packed, and may be replaced while a method runs
    shapes: Mapping[str, tuple[int, int]]  # (N, K) by name
    weight_of: Callable[[str], Tensor]  # float32 [N, K], which a method may change


@dataclass(frozen=True)
class Settings:
    """The sparsity, pattern and calibration data that a method gets."""

    sparsity: float  # the share of weights that go, 0 to 1
    pattern: str  # one of masks.PATTERNS
    batches: Sequence[Any]  # calibration data


@dataclass(frozen=True)
class Method:
    """A pruning method: a way to choose the weights that go."""

    name: str
    prune: Callable[[Layers, Settings], Iterator[Pruned]]  # one layer after the other, in their order
    needs_calibration: bool
    changes_weights: bool  # whether weights that stay change, too
