"""Models whose parameters take no memory until a file fills them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.parameter import is_lazy

from mempool.compress.sharing import in_place_of


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Modules that are built in it have parameters on the meta device, which take no memory; buffers are real.

    One layer's parameters are in memory while it is built. Their classes and attributes stay. Not for several threads
    at once.
    """
    register = nn.Module.register_parameter
    # By what each was before, which is not kept alive by it: one that is given to two modules stays one.
    on_meta: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not is_lazy(param) and not param.is_meta:
            known, meta = on_meta.get(id(param), (None, None))
            if meta is None or known is None or known() is not param:
                meta = in_place_of(param, param.detach().to("meta"))  # type: ignore[assignment]
                assert meta is not None
                on_meta[id(param)] = weakref.ref(param), meta
            param = meta
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
