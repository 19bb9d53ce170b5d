"""``meta_parameters``: models are built with parameters that take no memory until a file fills them."""

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
    """A context in which modules are built with parameters on the meta device, which take no memory; buffers are real.

    While a layer is built its parameters are in memory. Parameters keep their classes and attributes. The context holds
    for the thread or task that enters it: modules that other threads build meanwhile have memory.
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
    """Installs torch's hook once and never removes it: another thread may iterate over the hooks at that moment."""
    register_module_parameter_registration_hook(_on_meta)  # type: ignore[arg-type]


def _on_meta(module: nn.Module, name: str, param: nn.Parameter) -> nn.Parameter | None:
    """The parameter that torch registers instead of the given one; None: it registers the given one."""
    on_meta = _current.get()
    if on_meta is None or is_lazy(param) or param.is_meta:
        return None
    known, meta = on_meta.get(id(param), (None, None))
    if meta is None or known is None or known() is not param:
        meta = in_place_of(param, param.detach().to("meta"))  # type: ignore[assignment]
        assert meta is not None
        on_meta[id(param)] = weakref.ref(param), meta
    return meta
