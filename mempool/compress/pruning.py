"""``prune_``: sets weights to zero, chosen by their magnitude or by calibration data."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from mempool.compress.layers import Batches, linear_layers, require_batches, require_module
from mempool.compress.masks import PATTERNS
from mempool.compress.methods import METHODS, Layers, Pruned, Settings


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

    ``method``: ``"magnitude"`` prunes the smallest weights of a layer. ``"wanda"`` (Sun et al., "A Simple and Effective
    Pruning Approach for Large Language Models", 2023) prunes those of each output with the smallest product of
    magnitude and norm of the input. ``"sparsegpt"`` (Frantar and Alistarh, 2023) also changes the weights that stay, to
    make up for those that go. The latter two need ``calibration``: batches of the model's input, some hundred rows of
    real data.

    ``skip``: names of layers, names of modules that contain layers, or patterns (``"encoder.layer.?"``). A Linear that
    shares its weight with an embedding is left alone. ``keep_masks``: leave the masks of ``torch.nn.utils.prune`` on
    the layers, so that zeros stay zero while the model is fine-tuned; ``torch.nn.utils.prune.remove`` or ``convert``
    ends that.

    Raises ValueError for an impossible setting or for a layer that cannot be pruned, which it names, and TypeError for
    an argument of another type; the layers before that one are then pruned.
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
        if pruning.method.changes_weights:
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
    """The checked arguments of a pruning: method, sparsity, pattern and data, independent of where the weights are."""

    def __init__(self, sparsity: float, method: str, pattern: str, calibration: Batches | None) -> None:
        """Raises ValueError for an impossible setting."""
        _validate(sparsity, method, pattern)
        self.method = METHODS[method]
        if self.method.needs_calibration and calibration is None:
            raise ValueError(f"{method} needs calibration data: calibration=batches.")
        batches = [] if calibration is None else list(require_batches("calibration", calibration))  # read again
        self.settings = Settings(sparsity, pattern, batches)

    def run(
        self, model: nn.Module, shapes: Mapping[str, tuple[int, int]], weight_of: Callable[[str], Tensor]
    ) -> Iterator[Pruned]:
        """Yields name, new weight [N, K] float32 and boolean mask of each layer, one after the other.

        ``shapes``: (N, K) by name. Calibration data goes through ``model``: its layers of these names may be packed,
        and may be replaced while this runs.
        """
        for name, (_, inputs) in shapes.items():
            if self.settings.pattern == "2:4" and inputs % 4:
                raise ValueError(f"layer {name!r} has {inputs} inputs, and 2:4 takes them by fours: skip it.")
        yield from self.method.prune(Layers(model, shapes, weight_of), self.settings)


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
