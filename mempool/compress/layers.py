"""Selects the layers of a model that are to be compressed, and sends calibration data through it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune

from mempool.compress import name_patterns
from mempool.compress.sharing import memory_of
from mempool.packed.linear import SparseInt8Linear, runs_on

Batches = Iterable[Any]


Layer = TypeVar("Layer", bound=nn.Module)


def linear_layers(model: nn.Module, skip: Sequence[str]) -> dict[str, nn.Linear]:
    """The Linear layers by name, without those of ``skip``: see ``layers_of``.

    Raises ValueError for one whose weight is made anew of other tensors at each call, as by a parametrization.
    """
    layers = layers_of(model, skip, nn.Linear)
    for name, layer in layers.items():
        if any(part not in layer._parameters and not _is_pruned(layer, part) for part in ("weight", "bias")):
            raise ValueError(
                f"layer {name!r} makes its weight or bias of other tensors (weight_norm, spectral_norm, a "
                "parametrization): remove that, which leaves a plain weight, or leave the layer as it is: "
                f"skip=[{name!r}]."
            )
    return layers


def _is_pruned(layer: nn.Module, part: str) -> bool:
    hooks = layer._forward_pre_hooks.values()
    return any(isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == part for hook in hooks)


def remove_masks(layer: nn.Linear) -> None:
    """Ends the masking by ``torch.nn.utils.prune``: the masked weight and bias of a layer become its parameters."""
    for part in ("weight", "bias"):
        if _is_pruned(layer, part):
            prune.remove(layer, part)  # type: ignore[no-untyped-call]


def layers_of(model: nn.Module, skip: Sequence[str], kind: type[Layer]) -> dict[str, Layer]:
    """The layers of a kind, without those that match a pattern of ``skip`` (as in a shell) or are in one that does.

    A subclass is left alone, since its code may read its weight. So is a layer that shares its weight with another
    module, an embedding for one, also through another tensor object: the weight would be in memory twice. Raises
    ValueError for a pattern that matches no module, so that a misspelt name is noticed.
    """
    modules = not_skipped(model, skip)
    holders = Counter(_memory_of(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    return {
        name: cast(Layer, module)
        for name, module in modules.items()
        if _is_of(kind, module) and holders[_memory_of(module._parameters.get("weight"))] <= 1
    }


def _memory_of(parameter: Tensor | None) -> Hashable:
    if parameter is None or is_lazy(parameter) or not parameter.numel():
        return id(parameter)
    return memory_of(parameter)


def not_skipped(model: nn.Module, skip: Sequence[str]) -> dict[str, nn.Module]:
    """All modules by name, without those of ``skip``; raises ValueError for a pattern that matches none."""
    if isinstance(skip, str):
        raise TypeError(f"skip is a list of names, such as [{skip!r}].")
    if not isinstance(skip, Collection) or not all(isinstance(pattern, str) for pattern in skip):
        raise TypeError(f"skip is a list of names of layers or of patterns, not {skip!r}.")
    modules = dict(model.named_modules())
    skipped, unmatched = name_patterns.matched(modules.keys() - {""}, skip)
    if unmatched is not None:
        known = (name for name, module in modules.items() if isinstance(module, nn.Linear))
        raise ValueError(f"skip: no layer's name matches {unmatched!r}. There are {some(known)}.")
    return {name: module for name, module in modules.items() if skipped.isdisjoint(_ways_to(name))}


def _is_of(kind: type[nn.Module], module: nn.Module) -> bool:
    """Whether a module is of a kind and no subclass of it, but for the class that torch makes for parametrizations."""
    return type(module) is kind or (type(module).__base__ is kind and parametrize.is_parametrized(module))


def _ways_to(name: str) -> Iterator[str]:
    """``"a.b.c"`` as ``"a"``, ``"a.b"``, ``"a.b.c"``."""
    end = name.find(".")
    while end >= 0:
        yield name[:end]
        end = name.find(".", end + 1)
    yield name


def some(names: Iterable[str]) -> str:
    """The first five names as a list, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") or "none"


Observer = Callable[[Tensor], None]  # is given the rows [tokens, K] that go into a layer, float32


def observe(model: nn.Module, observers: Mapping[str, Observer], batches: Batches) -> None:
    """Sends every batch through the model (not compiled), and the inputs of the named layers to their observers.

    A batch is the model's input: a tensor, a tuple or list of arguments, or a mapping of named ones. Raises ValueError
    where there is no batch, where no batch reaches a layer, or where one reaches a 2:4 layer on the CPU.
    """
    reached: set[str] = set()

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            input: Tensor = positional[0] if positional else named["input"]
            sequences = input.detach().unbind() if input.is_nested else [input.detach()]
            rows = torch.cat([sequence.reshape(-1, sequence.shape[-1]) for sequence in sequences])
            if rows.shape[0]:
                reached.add(name)
                observers[name](rows.float())

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(hook_of(name), with_kwargs=True) for name in observers
    ]
    handles += [
        module.register_forward_pre_hook(_refuse_of(name, module.pattern))
        for name, module in model.named_modules()
        if isinstance(module, SparseInt8Linear) and not runs_on(module, "cpu") and not module.scales.is_cuda
    ]
    try:
        # Compiled code has no hooks.
        with evaluating(model), _padded(model), torch.no_grad(), torch._dynamo.config.patch(disable=True):
            count = 0
            for batch in batches:
                run_batch(model, batch)
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    if count == 0:
        raise ValueError("calibration has no batch.")
    if missed := [name for name in observers if name not in reached]:
        raise ValueError(f"no calibration batch reached {some(missed)}: give others, or skip these layers.")


def _refuse_of(name: str, pattern: str) -> Callable[..., None]:
    def refuse(*_: Any) -> None:
        raise ValueError(
            f"layer {name!r} is {pattern}, which the CPU does not run, and calibration data goes through it: put "
            "layer.repacked() in its place."
        )

    return refuse


def run_batch(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch, in one of the forms that `observe` takes."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    if isinstance(batch, Tensor):
        return model(batch)
    raise TypeError(f"a batch is a tensor, a tuple or a mapping, not {type(batch).__name__}.")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context with the model in evaluation mode; afterwards each module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _padded(model: nn.Module) -> Iterator[None]:
    """A context in which ``nn.TransformerEncoder`` makes no nested tensors of padded ones, for code without hooks."""
    encoders = [module for module in model.modules() if isinstance(module, nn.TransformerEncoder)]
    encoders = [encoder for encoder in encoders if getattr(encoder, "use_nested_tensor", False)]
    for encoder in encoders:
        encoder.use_nested_tensor = False
    try:
        yield
    finally:
        for encoder in encoders:
            encoder.use_nested_tensor = True


def require_module(name: str, model: Any) -> None:
    """Raises TypeError unless an argument is a model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} is a torch.nn.Module, not {type(model).__name__}.")


def require_batches(name: str, batches: Any) -> Batches:
    """Raises TypeError for an argument that is a single batch, or no batch, instead of several."""
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise TypeError(f"{name} is a list of batches, or another iterable of them, not {type(batches).__name__}.")
    return batches


def require_numbers(name: str, values: Tensor) -> None:
    """Raises ValueError if calibration gave a layer an input that is no number."""
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"layer {name!r}: the calibration data brought a NaN or an infinite value to it.")
