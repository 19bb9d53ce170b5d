"""Models whose parameters take no memory until a file fills them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from mempool.compress.sharing import in_place_of

# By what each was before, which is not kept alive by it: one that is given to two modules stays one.
_OnMeta: TypeAlias = dict[int, tuple["weakref.ref[nn.Parameter]", nn.Parameter]]
_current: ContextVar[_OnMeta | None] = ContextVar("meta_parameters", default=None)


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Modules that are built in it have parameters on the meta device, which take no memory; buffers are real.

    One layer's parameters are in memory while it is built. Their classes and attributes stay. It is for the thread or
    task that enters it: what others build meanwhile has memory.
    """
    _install()
    before = _current.get()
    _current.set({} if before is None else before)
    try:
        yield
    finally:
        _current.set(before)


@functools.cache
def _install() -> None:
    """Once and for ever: another thread may be walking through torch's hooks while one would be taken away."""
    register_module_parameter_registration_hook(_on_meta)  # type: ignore[arg-type]


def _on_meta(module: nn.Module, name: str, param: nn.Parameter) -> nn.Parameter | None:
    """What torch registers in place of a parameter; None for the parameter itself."""
    on_meta = _current.get()
    if on_meta is None or is_lazy(param) or param.is_meta:
        return None
    known, meta = on_meta.get(id(param), (None, None))
    if meta is None or known is None or known() is not param:
        meta = in_place_of(param, param.detach().to("meta"))  # type: ignore[assignment]
        assert meta is not None
        on_meta[id(param)] = weakref.ref(param), meta
    return meta
