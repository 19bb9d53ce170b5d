"""Layers that cannot be replaced without a loss: they have hooks or tensors of their own, or others hold them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from mempool.compress import convert, load, prune_, save
from mempool.nn import Int8Linear


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()


INPUT = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))


def _require_refusal(model: nn.Module, message: str, convert: Callable[[nn.Module], object] = convert) -> None:
    """That a conversion is refused, and has changed nothing."""
    modules, expected = list(model.modules()), model(INPUT)
    with pytest.raises(ValueError, match=message):
        convert(model)
    assert list(model.modules()) == modules
    assert torch.equal(model(INPUT), expected)


def _require_same(model: nn.Module, expected: torch.Tensor) -> None:
    assert any(isinstance(module, Int8Linear) for module in model.modules())
    assert 0 < (model(INPUT) - expected).abs().max() < 0.03 * expected.abs().max()


# What a layer has of its own


def _own_forward(layer: nn.Linear) -> None:
    forward = layer.forward
    layer.forward = lambda input: forward(input) * 100  # type: ignore[method-assign]


def _accelerate(layer: nn.Linear) -> None:  # what its add_hook_to_module does
    layer._hf_hook, layer._old_forward = object(), layer.forward
    layer.forward = functools.partial(lambda self, input: self._old_forward(input) * 2, layer)  # type: ignore


def _own_call(layer: nn.Linear) -> None:
    layer._call_impl = lambda *arguments: nn.Linear._call_impl(layer, *arguments) * 3  # type: ignore


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_own_forward, "has a 'forward' of its own"),
        (_accelerate, "has a hook of accelerate, .*remove_hook_from_module"),
        (_own_call, "has a '_call_impl' of its own"),
        (lambda layer: layer.compile(backend="eager"), "is compiled"),
        (lambda layer: layer.register_forward_hook(lambda *_: None), "has forward hooks"),
        (lambda layer: layer.register_forward_pre_hook(lambda *_: None), "has forward pre hooks"),
        (lambda layer: layer.register_full_backward_hook(lambda *_: None), "has backward hooks"),
        (lambda layer: layer.register_full_backward_pre_hook(lambda *_: None), "has backward pre hooks"),
        (lambda layer: layer.register_state_dict_post_hook(lambda *_: None), "has state dict hooks"),
        (lambda layer: layer.register_load_state_dict_pre_hook(lambda *_: None), "has load state dict pre hooks"),
        (lambda layer: layer.register_parameter("gate", nn.Parameter(torch.ones(1))), "has gate, which"),
        (lambda layer: layer.register_buffer("cached", torch.ones(1)), "has cached, which"),
        (lambda layer: layer.add_module("adapter", nn.Linear(16, 16)), "has adapter, which"),
        (weight_norm, "makes its weight or bias of other tensors"),
        (spectral_norm, "makes its weight or bias of other tensors"),
        (parametrizations.weight_norm, "makes its weight or bias of other tensors"),
        (parametrizations.orthogonal, "makes its weight or bias of other tensors"),
        (lambda layer: parametrize.register_parametrization(layer, "bias", nn.Tanh()), "makes its weight or bias of"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(change: Callable[[nn.Module], object], message: str) -> None:
    model = _model()
    change(model[2])
    _require_refusal(model, f"layer '2' {message}")
    expected = model(INPUT)
    _require_same(convert(model, skip=["2"]), expected)


def test_loading_refuses_what_converting_does(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    save(_model(), tmp_path / "model.safetensors")
    save(convert(_model()), tmp_path / "packed.safetensors")
    for file in ("model.safetensors", "packed.safetensors"):
        model = _model()
        _own_forward(model[2])
        _require_refusal(model, "'2' has a 'forward'", lambda model, file=file: load(model, tmp_path / file))


def test_a_weight_that_is_made_of_others_is_not_pruned() -> None:
    for make in (weight_norm, spectral_norm, parametrizations.weight_norm):
        model = _model()
        make(model[2])
        _require_refusal(model, "layer '2' makes its weight", prune_)


def test_masks_of_pruning_and_methods_that_are_unchanged_are_no_obstacle() -> None:
    model = _model()
    model[0].forward = model[0].forward  # what accelerate leaves when it goes
    prune.random_unstructured(model[2], "bias", 0.5)
    prune.random_unstructured(model[2], "weight", 0.5)
    expected = model(INPUT)
    convert(model)
    assert (model(INPUT) - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.fixture(params=["method", "wrapped", "call", "functional"])
def patched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    original = nn.Linear.forward

    def replacement(self: nn.Linear, input: torch.Tensor) -> torch.Tensor:
        return original(self, input) * 2

    if request.param == "call":
        monkeypatch.setattr(nn.Linear, "__call__", replacement)
    elif request.param == "functional":
        monkeypatch.setattr(nn.functional, "linear", lambda *arguments: torch._C._nn.linear(*arguments) * 2)
    else:
        wrap = functools.wraps(original) if request.param == "wrapped" else lambda function: function
        monkeypatch.setattr(nn.Linear, "forward", wrap(replacement))


def test_a_patch_of_the_class_is_refused(patched: None) -> None:
    _require_refusal(_model(), r"layer '0' would lose what .* does")


def test_weights_that_are_no_plain_floats_are_refused_before_any_is_packed() -> None:
    class Quantized(torch.Tensor):
        pass

    quantized = nn.Parameter(torch.ones(16, 16, dtype=torch.int8), requires_grad=False)
    for weight, message in (
        (quantized, "torch.int8: quantized already"),
        (nn.Parameter(torch.ones(16, 16, dtype=torch.complex64)), "torch.complex64"),
        (nn.Parameter(torch.ones(16, 16).as_subclass(Quantized)), "is a Quantized"),
        (nn.Parameter(torch.ones(8, 16)), r"shape \(8, 16\)"),
        (nn.Parameter(torch.full((16, 16), float("nan"))), "NaN or an infinite value in row 0"),
        (nn.Parameter(torch.ones(16, 16, device="meta")), "is on meta"),
    ):
        model = _model()
        model[2].weight = weight
        with pytest.raises(ValueError, match=f"layer '2': .*{message}"):
            convert(model)
        assert type(model[0]) is nn.Linear


# Who else holds a layer


@pytest.mark.parametrize("is_warm", [False, True])
@pytest.mark.parametrize("which", ["layer", "alone", "block", "model", "in place"])
def test_compiled_modules_run_the_packed_layer(which: str, is_warm: bool) -> None:
    model: nn.Module = _model()
    compiled: nn.Module = nn.Sequential(model)
    if which == "layer":
        model[0] = torch.compile(model[0], backend="eager")
    elif which == "alone":
        compiled = torch.compile(nn.Linear(16, 16), backend="eager")
    elif which == "block":
        compiled[0] = torch.compile(model, backend="eager")
    elif which == "model":
        compiled = torch.compile(compiled, backend="eager")
    else:
        compiled.compile(backend="eager")
    with torch.no_grad():
        expected = compiled(INPUT) if is_warm else None
        again = torch.compiler.disable(compiled.forward)(INPUT) if expected is None else expected
        _require_same(convert(compiled), again)


def test_a_compiled_layer_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    model = _model()
    model[0] = torch.compile(model[0], backend="eager")
    save(model, tmp_path / "model.safetensors")
    expected = model(INPUT)
    other = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    other[0] = torch.compile(other[0], backend="eager")
    load(other, tmp_path / "model.safetensors")
    _require_same(other, expected)


def test_a_model_that_was_compiled_outside_runs_the_packed_layers() -> None:
    model = _model()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected = compiled(INPUT)
        convert(model)
        assert torch.equal(compiled(INPUT), model(INPUT))
        _require_same(compiled, expected)


class _Slots:
    __slots__ = ("layer",)


class _Holder(nn.Module):
    def __init__(self, hold: Callable[[_Holder, nn.Linear], object]) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        hold(self, self.inner[0])

    def forward(self, input: torch.Tensor) -> Any:
        return self.inner(input)


def _hold(value: Callable[[nn.Linear], object]) -> Callable[[nn.Module, nn.Linear], None]:
    return lambda holder, layer: object.__setattr__(holder, "held", value(layer))


def _in_slots(layer: nn.Linear) -> _Slots:
    holder = _Slots()
    holder.layer = layer
    return holder


@pytest.mark.parametrize(
    "hold",
    [
        _hold(lambda layer: layer),
        _hold(lambda layer: [layer]),
        _hold(lambda layer: {"a": [({3}, layer)]}),
        _hold(lambda layer: layer.forward),
        _hold(lambda layer: functools.partial(layer)),
        _hold(lambda layer: lambda input: layer(input)),
        _hold(lambda layer: [nn.Sequential(layer)]),
        _hold(lambda layer: [torch.compile(layer, backend="eager")]),
        _hold(_in_slots),
        _hold(weakref.ref),
        _hold(weakref.proxy),
        _hold(lambda layer: [weakref.ref(layer)]),
        _hold(lambda layer: {"a": weakref.proxy(layer)}),
        _hold(lambda layer: weakref.WeakMethod(layer.forward)),
        _hold(lambda layer: weakref.WeakValueDictionary(a=layer)),
        _hold(lambda layer: weakref.WeakKeyDictionary({layer: 1})),
        _hold(lambda layer: weakref.WeakSet([layer])),
        _hold(lambda layer: type("Kind", (), {"layer": layer})),
        _hold(lambda layer: type("Kind", (type("Base", (), {"layers": [layer]}),), {})()),
        lambda holder, layer: holder.register_forward_hook(lambda self, input, output: output + layer(*input)),
    ],
)
def test_a_layer_that_something_else_holds_is_refused(hold: Callable[[nn.Module, nn.Linear], object]) -> None:
    _require_refusal(_Holder(hold), r"layer 'inner\.0' is also held by _Holder\.(held|_forward_hooks)")


class _Slotted(_Holder):
    __slots__ = ("held",)


@pytest.mark.parametrize("kind", [_Holder, _Slotted])
@pytest.mark.parametrize("is_in_base", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        lambda layer: layer,
        lambda layer: [{"a": layer}],
        weakref.ref,
        weakref.proxy,
        lambda layer: weakref.WeakValueDictionary(a=layer),
        lambda layer: staticmethod(lambda input: layer(input)),
        lambda layer: property(functools.partial(lambda one, self: one, layer)),
        lambda layer: lambda self, input, by=layer: by(input),
        lambda layer: type("Inner", (), {"layer": layer}),
    ],
)
def test_a_layer_that_a_class_holds_is_refused(
    tmp_path: Path, kind: type[_Holder], is_in_base: bool, value: Callable[[nn.Linear], object]
) -> None:
    held_by: type[nn.Module] = type("Holding", (kind,), {})
    model = (type("Derived", (held_by,), {}) if is_in_base else held_by)(lambda *_: None)
    save(model, tmp_path / "model.safetensors")
    held_by.held = value(model.inner[0])  # type: ignore[attr-defined]
    message = r"layer 'inner\.0' is also held by Holding\.held, outside of the model's modules"
    _require_refusal(model, message)
    with pytest.raises(ValueError, match=message):
        load(model, tmp_path / "model.safetensors")
    assert type(model.inner[0]) is nn.Linear
    convert(model, skip=["inner.0"])
    assert type(model.inner[1]) is Int8Linear


def test_a_layer_in_a_slot_is_refused() -> None:
    model = _Slotted(lambda holder, layer: None)
    model.held = [model.inner[0]]
    _require_refusal(model, r"layer 'inner\.0' is also held by _Slotted\.held")


def test_references_to_what_is_gone_or_stays_are_no_obstacle() -> None:
    gone = nn.Linear(2, 2)
    model = _Holder(lambda holder, layer: None)
    dead = [weakref.ref(gone), weakref.proxy(gone), weakref.WeakValueDictionary(a=gone)]
    held_by = type("Holding", (_Holder,), {"held": dead, "proxy": dead[1], "others": weakref.WeakSet()})
    model = held_by(lambda holder, layer: object.__setattr__(holder, "dead", [*dead, weakref.proxy(holder)]))
    held_by.others.add(model)
    held_by.others.add(model.inner)
    del gone
    expected = model(INPUT)
    _require_same(convert(model), expected)


def test_who_reaches_a_layer_through_its_parent_goes_on() -> None:
    for hold in (
        lambda holder, layer: setattr(holder, "held", lambda input: holder.inner[0](input)),
        lambda holder, layer: object.__setattr__(holder, "held", [holder, holder.inner, layer.weight]),
        lambda holder, layer: holder.register_forward_hook(lambda self, input, output: output),
    ):
        model = _Holder(hold)
        expected = model(INPUT)
        _require_same(convert(model), expected)


def test_wrappers_that_keep_parameters_are_refused(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(_model())
    _require_refusal(averaged, r"'module\.0' is in AveragedModel, .* convert its \.module")
    expected = averaged(INPUT)
    _require_same(convert(averaged.module), expected)
    _require_same(convert(nn.DataParallel(_model())), expected)  # holds nothing but its module


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_distributed_wrappers_are_refused(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(_model())
        _require_refusal(nn.Sequential(parallel), r"'0\.module\.0' is in DistributedDataParallel '0', .* before it")
        sharded = torch.distributed.fsdp.fully_shard(_model(), mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        _require_refusal(sharded, "'0' is in FSDPModule, .* unsharded")
    finally:
        torch.distributed.destroy_process_group()
