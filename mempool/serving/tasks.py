"""Tasks of a worker (Celery, RQ), methods of a gRPC service: each call of a function in a pool of its own."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from mempool._device import Device, Size
from mempool.coroutines import in_pool
from mempool.errors import ConfigError
from mempool.scopes import use_pool
from mempool.serving.request_pools import RequestPools

P = ParamSpec("P")
T = TypeVar("T")


def limit_memory(
    limit: Size | None = None, total_limit: Size | None = None, device: Device = "cpu", *, name: str | None = None
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Charges each call of a function, or of a coroutine function, to a pool of its own, with a limit.

    ``@limit_memory("64MiB")`` above a task, below the decorator that registers it::

        @celery.task
        @limit_memory("64MiB", total_limit="1GiB")
        def embed(texts): ...

    A call that asks for more fails with :class:`mempool.OutOfMemoryError`, and no other does.

    Args:
        limit: most bytes of live blocks of one call, as for :class:`mempool.MemoryPool`; None for no limit.
        total_limit: likewise of all calls of the function together, in this process.
        device: whose memory is bounded; mempool is enabled for it where it is not, at the first call.
        name: of the pool of all calls in statistics; None for the function's. A call's is ``"{name} request"``.

    Raises:
        ConfigError: it decorates no function, or a generator; on the first call, a size or a device that does not
            parse.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        if not callable(function):
            raise ConfigError(f'limit_memory decorates a function, not {function!r}: write @limit_memory("64MiB").')
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(f"limit_memory decorates no generator ({function!r}): its caller runs between its steps.")
        made: list[RequestPools] = []
        making = threading.Lock()
        own_name = name or str(getattr(function, "__qualname__", "task"))

        def pools() -> RequestPools:
            """Made at the first call, not at import: a worker's parent imports its tasks before it forks."""
            if not made:
                with making:
                    if not made:
                        made.append(RequestPools(limit, total_limit, device, own_name))
            return made[0]

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                work = function(*args, **kwargs)
                return await (in_pool(pools().open(), work) if pools().is_active else work)

            return cast("Callable[P, T]", call_async)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if not pools().is_active:
                return function(*args, **kwargs)
            with use_pool(pools().open()):
                return function(*args, **kwargs)

        return call

    return decorate
