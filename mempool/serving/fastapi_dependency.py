"""A dependency of FastAPI that gives single endpoints a pool for each request."""

from __future__ import annotations

import logging
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mempool._device import Device, Size
from mempool.pools import MemoryPool
from mempool.scopes import is_following, use_pool
from mempool.serving.loops import LoopFollower
from mempool.serving.refusals import refusal_in
from mempool.serving.request_pools import RequestPools

_log = logging.getLogger("mempool")


class PoolDependency:
    """Bounds the memory of each request of one endpoint, and answers 503 where one asks for more.

    ``@app.get("/embed", dependencies=[Depends(PoolDependency("64MiB"))])``, or as a parameter, whose value is the
    request's :class:`mempool.MemoryPool`. It charges the endpoint and what it starts, as :class:`PoolMiddleware` does,
    from the moment that FastAPI resolves it; the order of dependencies is FastAPI's. A refusal that leaves the endpoint
    becomes ``HTTPException(503)``, whose ``detail`` is the JSON of PoolMiddleware's answer.

    Pools follow their context on the server's event loop from the first request on, or from the start of the app where
    it is made while the loop runs, as uvicorn does. A request that began before that is charged what its threads do and
    what it does up to its first ``await``, and a warning says so once: use PoolMiddleware as well, whose limit may be
    None, or call :func:`mempool.follow_context` in the app's lifespan.

    Args:
        limit: most bytes of live blocks of one request, as for :class:`mempool.MemoryPool`; None for no limit.
        total_limit: likewise of all requests that this dependency serves together, in this process.
        device: whose memory is bounded; mempool is enabled for it if it is not.
        name: of the pool of all requests in statistics; a request's is ``"{name} request"``.

    With ``MEMPOOL_DISABLE=1`` requests run without limits, and one warning says so.

    Raises:
        ConfigError: a size or a device that does not parse.
        DeviceError: the device cannot be used.
    """

    def __init__(
        self,
        limit: Size | None = None,
        total_limit: Size | None = None,
        device: Device = "cpu",
        *,
        name: str = "endpoint",
    ) -> None:
        self._pools = RequestPools(limit, total_limit, device, name)
        self._follower = LoopFollower()
        self._has_warned = False
        with suppress(RuntimeError):  # no loop runs here
            self._follower.begin()

    @property
    def pool(self) -> MemoryPool:
        """The pool that all requests are charged to."""
        return self._pools.app

    async def __call__(self) -> AsyncIterator[MemoryPool]:
        """The request's stay in its pool, as FastAPI has it."""
        pool = self._pools.open()
        if not self._pools.is_active:
            yield pool
            return
        self._follower.begin()
        try:
            with use_pool(pool) if is_following() else self._until_first_await(pool):
                yield pool
        except Exception as error:
            refusal = refusal_in(error, pool)
            if refusal is None:
                raise
            _log.info("a request was refused memory: %s", error)
            raise _http_exception()(503, refusal.facts(), refusal.retry_after()) from error

    @contextmanager
    def _until_first_await(self, pool: MemoryPool) -> Iterator[None]:
        """For a task that was made before anybody could follow it: its threads and its own first step are charged."""
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"a request in pool {pool.name!r} began before pools followed their context: what it allocates itself "
                "after its first await is not charged. Add PoolMiddleware (its limit may be None) or call "
                "mempool.follow_context() in the app's lifespan.",
                RuntimeWarning,
                stacklevel=2,
            )
        stay = use_pool(pool)
        stay.__enter__()
        try:
            yield
        finally:
            with suppress(RuntimeError):  # it was open across an await
                stay.__exit__(None, None, None)


def _http_exception() -> Any:
    from fastapi import HTTPException

    return HTTPException
