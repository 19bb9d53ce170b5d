"""``convert``: replaces every Linear of a model by a packed layer, dense or sparse by its density."""

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

# The migration strength of SmoothQuant: how much of the outliers moves from activations to weights; the paper's value.
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

    A pruned layer becomes sparse where that saves at least a fifth of its memory, and dense otherwise: see
    ``mempool.nn``. Each dense weight is freed before the next is packed. Three kinds of layers stay as they are, and a
    warning names them: subclasses of Linear (the output projection of ``torch.nn.MultiheadAttention``, for one, whose
    code reads its weight), Linears that share their weight with an embedding, and Linears whose weight the model's code
    is seen to read (``self.wo.weight`` in T5). Where code reads a weight unseen, ``.weight`` raises an AttributeError
    that names the layer for ``skip``; code that asks first (``hasattr``, ``getattr`` with a default, ``isinstance``)
    takes its other branch.

    ``smooth=True`` moves outliers of the activations into the weights (Xiao et al., "SmoothQuant", 2023): it needs
    ``calibration``, and costs one multiplication for each activation. ``skip``: names of layers, or patterns.
    ``target="cuda"``: layers that were pruned to 2:4 get the format of sparse tensor cores, which runs on a GPU alone;
    dense layers have to be on the CPU to be packed, and the model is moved to the GPU afterwards. Sparse layers that
    are packed already are packed anew where the target needs it, so that ``convert(model)`` makes a model of 2:4 layers
    run on the CPU again.

    Raises ValueError, naming the layer, where a weight has a NaN or an infinite value, is not on the CPU, is quantized
    already, or has more than 65,536 inputs, and where replacing the layer would lose something: hooks, a ``forward`` or
    tensors of its own, a parametrization, or a reference to it from outside of the model's modules. The model is then
    unchanged. Code that ``torch.compile`` made of a layer, or of a module around it, runs the packed layer.
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

    Raises the errors of ``linear_layers``.
    """
    layers = linear_layers(model, skip)
    read = read_weights(model, layers)
    return {name: layer for name, layer in layers.items() if name not in read}, read


def _require_convertible(
    model: nn.Module, layers: Mapping[str, nn.Linear], packed_before: Iterable[str], target: str
) -> None:
    """Raises ValueError for a layer that could not be packed, or with which something would be lost."""
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
    """Replaces each of these sparse layers by one in the format that the target needs, one after the other."""
    for name in names:
        layer = tree.model.get_submodule(name)
        assert isinstance(layer, SparseInt8Linear)
        new = layer.for_target(target)
        if new is not layer:
            require_nothing_lost(name, layer)
            tree.replace(layer, new)


def packed_layer(name: str, layer: nn.Linear, input_scale: Tensor | None = None, target: str = "cpu") -> nn.Module:
    """Packs a layer by ``pack_linear``, with the layer's name in its errors."""
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
    """Observes the largest magnitude of each input."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __call__(self, rows: Tensor) -> None:
        largest = rows.abs().amax(dim=0)
        self.value = largest if self.value is None else torch.maximum(self.value, largest)


def _smoothing(model: nn.Module, layers: dict[str, nn.Linear], batches: Batches) -> dict[str, Tensor]:
    """The factor of each input, float32 [K], for each layer."""
    largest = {name: _Largest() for name in layers}
    observe(model, largest, batches)
    scales = {}
    for name, layer in layers.items():
        activations, weights = largest[name].value, layer.weight.detach().float().abs().amax(dim=0)
        assert activations is not None
        require_numbers(name, activations)
        ratio = weights**SMOOTH_STRENGTH / activations ** (1 - SMOOTH_STRENGTH)
        # An input that is always zero, or has only zero weights, keeps the factor 1.
        usable = (activations > 0) & (weights > 0)
        scales[name] = torch.where(usable, ratio.clamp(1e-5, 1e5), 1.0)
    return scales
