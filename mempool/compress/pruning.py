"""``prune_``: weights to zero, by magnitude or by what calibration data says of them."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from mempool.compress import sparsegpt
from mempool.compress.layers import Batches, linear_layers, observe, require_batches, require_module, require_numbers
from mempool.compress.masks import PATTERNS, mask_of

METHODS = ("magnitude", "wanda", "sparsegpt")
# Hessians of as many layers as fit into it are gathered in one pass over the calibration data.
HESSIAN_BYTES = 1 << 30


def prune_(
    model: nn.Module,
    sparsity: float = 0.5,
    method: str = "magnitude",
    pattern: str = "unstructured",
    calibration: Batches | None = None,
    skip: Sequence[str] = (),
    keep_masks: bool = False,
) -> nn.Module:
    """Sets a share of the weights of every ``torch.nn.Linear`` to zero, in place; returns the model.

    ``sparsity``: the share that goes, 0 to 1; always 0.5 for ``pattern="2:4"``. ``pattern``: ``"unstructured"``,
    ``"2:4"`` (2 of every 4 inputs) or ``"block4"`` (blocks of 4 inputs of an output).

    ``method``: ``"magnitude"`` takes the smallest of a layer. ``"wanda"`` (Sun et al., "A Simple and Effective Pruning
    Approach for Large Language Models", 2023) takes the smallest of each output by magnitude times the norm of the
    input it meets. ``"sparsegpt"`` (Frantar and Alistarh, 2023) also changes the weights that stay, to make up for
    those that go. The latter two need ``calibration``: batches as the model takes them, some hundred rows of real data.

    ``skip``: names of layers or of modules that have some, or patterns such as ``"encoder.layer.?"``. A Linear whose
    weight is also that of an embedding is left alone. ``keep_masks``: leave the masks of
    ``torch.nn.utils.prune`` on the layers, so that zeros stay zero while the model is fine-tuned;
    ``torch.nn.utils.prune.remove`` or ``convert`` ends that.

    Raises ValueError for what cannot be, naming the layer where it is one, and TypeError for an argument of another
    type; the layers before it are pruned then.
    """
    require_module("model", model)
    layers = linear_layers(model, skip)
    for name, layer in layers.items():
        _require_weight(name, layer.weight)
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    pruning = Pruning(sparsity, method, pattern, calibration)
    for name, weight, mask in pruning.run(model, shapes, lambda name: layers[name].weight.detach().float()):
        layer = layers[name]
        if hasattr(layer, "weight_orig"):  # the weights that stay are learned and changed under the old mask
            prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
        if method == "sparsegpt":
            with torch.no_grad():
                layer.weight.copy_(weight)
        prune.custom_from_mask(layer, "weight", mask)  # type: ignore[no-untyped-call]
        if not keep_masks:
            prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    return model


def _require_weight(name: str, weight: Tensor) -> None:
    if weight.is_meta or not bool(torch.isfinite(weight).all()):
        raise ValueError(f"layer {name!r}: its weight is on the meta device, or has a NaN or an infinite value.")


class Pruning:
    """What is to be pruned and how, apart from where the weights are."""

    def __init__(self, sparsity: float, method: str, pattern: str, calibration: Batches | None) -> None:
        """Raises ValueError for what cannot be."""
        _validate(sparsity, method, pattern)
        if method != "magnitude" and calibration is None:
            raise ValueError(f"{method} needs calibration data: calibration=batches.")
        self.sparsity = sparsity
        self.method = method
        self.pattern = pattern
        self.batches = [] if calibration is None else list(require_batches("calibration", calibration))  # read again

    def run(
        self, model: nn.Module, shapes: Mapping[str, tuple[int, int]], weight_of: Callable[[str], Tensor]
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, new weight [N, K] float32 and boolean mask of each layer, one after the other.

        ``shapes``: (N, K) by name. ``model`` is what the calibration data goes through: its layers of these names may
        be packed, and may be replaced while this runs.
        """
        for name, (_, inputs) in shapes.items():
            if self.pattern == "2:4" and inputs % 4:
                raise ValueError(f"layer {name!r} has {inputs} inputs, and 2:4 takes them by fours: skip it.")
        if self.method == "sparsegpt":
            yield from self._sparsegpt(model, shapes, weight_of)
            return
        norms = input_norms(model, list(shapes), self.batches) if self.method == "wanda" else {}
        for name in shapes:
            yield name, *self._masked(name, weight_of(name), norms.pop(name, None))

    def _masked(self, name: str, weight: Tensor, norms: Tensor | None) -> tuple[Tensor, Tensor]:
        """The weight and its mask. The scores are gone then: the next steps need memory, too."""
        scores = weight.abs()
        if norms is not None:
            require_numbers(name, norms)
            scores *= norms
        return weight, mask_of(scores, self.sparsity, self.pattern, rows_apart=norms is not None)

    def _sparsegpt(
        self, model: nn.Module, shapes: Mapping[str, tuple[int, int]], weight_of: Callable[[str], Tensor]
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        for group in _by_bytes(shapes):
            hessians = {name: _Hessian() for name in group}
            observe(model, hessians, self.batches)  # through the layers that are pruned already
            for name in group:
                hessian = hessians.pop(name).sum
                assert hessian is not None
                require_numbers(name, hessian)
                yield name, *sparsegpt.prune(weight_of(name), hessian, self.sparsity, self.pattern)


def _validate(sparsity: float, method: str, pattern: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, not {method!r}.")
    if pattern not in PATTERNS:
        raise ValueError(f"pattern is one of {', '.join(PATTERNS)}, not {pattern!r}.")
    if isinstance(sparsity, bool) or not isinstance(sparsity, numbers.Real):
        raise TypeError(f"sparsity is a number, 0 to 1, not {sparsity!r}.")
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is a share, 0 to 1, not {sparsity}.")
    if pattern == "2:4" and sparsity != 0.5:
        raise ValueError(f"2:4 is a sparsity of 0.5, not {sparsity}.")


class _Squares:
    """The sum over tokens of each input's square."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None

    def __call__(self, rows: Tensor) -> None:
        squares = rows.square().sum(dim=0)
        self.sum = squares if self.sum is None else self.sum + squares


def input_norms(model: nn.Module, names: Sequence[str], batches: Batches) -> dict[str, Tensor]:
    """The norm of each input of the named layers over all tokens of the calibration data, float32 [K]."""
    squares = {name: _Squares() for name in names}
    observe(model, squares, batches)
    return {name: square.sum.sqrt() for name, square in squares.items() if square.sum is not None}


class _Hessian:
    """The sum over tokens of x xᵀ."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None

    def __call__(self, rows: Tensor) -> None:
        if self.sum is None:
            self.sum = rows.new_zeros(rows.shape[1], rows.shape[1])
        self.sum.addmm_(rows.T, rows)


def _by_bytes(shapes: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """Names whose Hessians fit into HESSIAN_BYTES together, in order."""
    groups: list[list[str]] = [[]]
    left = HESSIAN_BYTES
    for name, (_, inputs) in shapes.items():
        size = 4 * inputs**2
        if groups[-1] and size > left:
            groups.append([])
            left = HESSIAN_BYTES
        groups[-1].append(name)
        left -= size
    return [group for group in groups if group]
