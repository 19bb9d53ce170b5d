"""``convert``: every Linear becomes the packed layer that its density asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mempool.compress.layers import (
    Batches,
    layers_of,
    linear_layers,
    observe,
    remove_masks,
    require_batches,
    require_module,
    require_numbers,
)
from mempool.compress.left_alone import left_alone, warn_of
from mempool.compress.module_tree import ModuleTree
from mempool.compress.replaceable import lost_with, require_nothing_lost, require_replaceable
from mempool.compress.undoing import unchanged_by_errors
from mempool.compress.weight_readers import read_weights
from mempool.packed.formats import require_target
from mempool.packed.linear import Int8Linear, SparseInt8Linear, pack_linear
from mempool.packed.quantizing import require_packable

# How much of the difficulty moves from activations to weights; 0.5 as in the paper.
SMOOTH_STRENGTH = 0.5


def convert(
    model: nn.Module,
    weights: str = "int8",
    calibration: Batches | None = None,
    smooth: bool = False,
    skip: Sequence[str] = (),
    target: str = "cpu",
) -> nn.Module:
    """Replaces every ``torch.nn.Linear`` by an int8 layer, in place, one after the other; returns the model.

    A layer that was pruned becomes sparse where that saves a fifth of its memory or more, and dense else: see
    ``mempool.nn``. Each dense weight is freed before the next is packed. Left alone are subclasses of Linear (such as
    the output projection of ``torch.nn.MultiheadAttention``, whose code reads its weight) and Linears whose weight is
    also that of an embedding, and Linears whose weight the model's code is seen to read (``self.wo.weight`` in T5): a
    warning says which. Where such code is not seen, ``.weight`` ends with an AttributeError that names the layer for
    ``skip``, and code that asks first (``hasattr``, ``getattr`` with a default, ``isinstance``) goes another way.

    ``smooth=True`` moves outliers of the activations into the weights (Xiao et al., "SmoothQuant", 2023): needs
    ``calibration``, and costs one multiplication for each activation. ``skip``: names of layers, or patterns.
    ``target="cuda"``: layers that were pruned to 2:4 take sparse tensor cores' format, which a GPU alone runs; what is
    not packed has to be on the CPU, and goes to the GPU afterwards. Sparse layers that are packed already are packed
    anew where the target asks for it, so that ``convert(model)`` makes a model of 2:4 layers run on the CPU again.

    Raises ValueError, naming the layer, where a weight has a NaN or an infinite value, is not on the CPU, is quantized
    already, or has more than 65,536 inputs, and where something would be lost with a layer: hooks, a ``forward`` or
    tensors of its own, a parametrization, or something beside the model's modules that holds it. Nothing is changed
    then. What ``torch.compile`` made of a layer, or of what it is in, runs the packed one.
    """
    if weights != "int8":
        raise ValueError(f"weights can be 'int8', not {weights!r}.")
    require_target(target)
    require_module("model", model)
    if calibration is not None:
        require_batches("calibration", calibration)
    if smooth and calibration is None:
        raise ValueError("smooth=True needs calibration data: calibration=batches.")
    layers, read = packable_layers(model, skip)
    reasons = left_alone(model, layers, read, skip)
    packed_before = list(layers_of(model, skip, SparseInt8Linear))
    _require_convertible(model, layers, packed_before, target)
    if type(model) is SparseInt8Linear:
        return model.for_target(target)
    tree = ModuleTree(model)
    is_any_packed = bool(layers) or any(isinstance(m, (Int8Linear, SparseInt8Linear)) for m in model.modules())
    scales: dict[str, Tensor] = {}
    warn_of(model, reasons, is_any_packed)
    if calibration is not None and smooth:
        with unchanged_by_errors(model):
            if target == "cpu":
                retarget(tree, packed_before, target)  # calibration data may go through them
            scales = _smoothing(model, layers, calibration)
    if target == "cpu":
        retarget(tree, packed_before, target)
    for name in list(layers):
        layer = layers.pop(name)
        remove_masks(layer)
        packed = packed_layer(name, layer, scales.get(name), target)
        if layer is model:
            return packed
        tree.replace(layer, packed)
    if target != "cpu":
        retarget(tree, packed_before, target)
    return model


def packable_layers(model: nn.Module, skip: Sequence[str]) -> tuple[dict[str, nn.Linear], set[str]]:
    """The Linear layers that can be packed, and the names of those that stay since the model's code reads their weight.

    What ``linear_layers`` raises, it raises.
    """
    layers = linear_layers(model, skip)
    read = read_weights(model, layers)
    return {name: layer for name, layer in layers.items() if name not in read}, read


def _require_convertible(
    model: nn.Module, layers: Mapping[str, nn.Linear], packed_before: Iterable[str], target: str
) -> None:
    """Raises ValueError for whatever would stop half-way or be lost."""
    replaced: dict[str, nn.Module] = {**layers}
    for name in packed_before:
        layer = model.get_submodule(name)
        assert isinstance(layer, SparseInt8Linear)
        if lost_with(layer) is not None and layer.for_target(target) is not layer:
            replaced[name] = layer
    require_replaceable(model, replaced)
    for name, linear in layers.items():
        with _named(name):
            require_packable(linear)


def retarget(tree: ModuleTree, names: Iterable[str], target: str) -> None:
    """Puts in the place of each of these sparse layers the one that the target asks for, one after the other."""
    for name in names:
        layer = tree.model.get_submodule(name)
        assert isinstance(layer, SparseInt8Linear)
        new = layer.for_target(target)
        if new is not layer:
            require_nothing_lost(name, layer)
            tree.replace(layer, new)


def packed_layer(name: str, layer: nn.Linear, input_scale: Tensor | None = None, target: str = "cpu") -> nn.Module:
    """``pack_linear``, with the layer's name in its errors."""
    with _named(name):
        packed = pack_linear(layer, input_scale, target)
    packed.name_in_model = name or None
    return packed


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error


class _Largest:
    """The largest magnitude of each input."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __call__(self, rows: Tensor) -> None:
        largest = rows.abs().amax(dim=0)
        self.value = largest if self.value is None else torch.maximum(self.value, largest)


def _smoothing(model: nn.Module, layers: dict[str, nn.Linear], batches: Batches) -> dict[str, Tensor]:
    """What the inputs of each layer are multiplied by, float32 [K]."""
    largest = {name: _Largest() for name in layers}
    observe(model, largest, batches)
    scales = {}
    for name, layer in layers.items():
        activations, weights = largest[name].value, layer.weight.detach().float().abs().amax(dim=0)
        assert activations is not None
        require_numbers(name, activations)
        ratio = weights**SMOOTH_STRENGTH / activations ** (1 - SMOOTH_STRENGTH)
        # An input that is never used, or has no weight, stays as it is.
        usable = (activations > 0) & (weights > 0)
        scales[name] = torch.where(usable, ratio.clamp(1e-5, 1e5), 1.0)
    return scales
