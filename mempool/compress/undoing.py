"""Restores a model after an error, so that a failed call has changed nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mempool.compress.sharing import write


@contextmanager
def unchanged_by_errors(model: nn.Module, written: Callable[[], Iterable[Tensor]] = tuple) -> Iterator[None]:
    """A context: after an error in it modules have their former children and tensors, and ``written`` former values."""
    kept = [(module, _own(module)) for module in model.modules()]
    values = [(tensor, tensor.detach().clone()) for tensor in written()]
    try:
        yield
    except BaseException:
        for module, own in kept:
            for key in _HELD:
                held = module.__dict__[key]
                held.clear()
                held.update(own.pop(key))
                own[key] = held
            module.__dict__.clear()
            module.__dict__.update(own)
        for tensor, numbers in values:
            write(tensor, numbers)
        raise


_HELD = ("_modules", "_parameters", "_buffers")


def _own(module: nn.Module) -> dict[str, Any]:
    return module.__dict__ | {key: dict(module.__dict__[key]) for key in _HELD}
