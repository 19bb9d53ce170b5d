"""Requests of any ASGI app (FastAPI, Starlette, Litestar), each in a pool of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from types import CoroutineType
from typing import Any, TypeAlias

from mempool._device import Device, Size
from mempool.coroutines import in_pool
from mempool.following import stay
from mempool.pools import MemoryPool
from mempool.scopes import Entry, is_following
from mempool.serving.loops import LoopFollower
from mempool.serving.refusals import Refusal, refusal_in, untold_refusal, was_refused
from mempool.serving.request_pools import RequestPools

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_log = logging.getLogger("mempool")
_TRY_AGAIN_LATER = 1013  # of RFC 6455's registry of close codes


class PoolMiddleware:
    """Bounds the memory of each request of an ASGI app, and answers 503 where one asks for more.

    ``app = PoolMiddleware(app, limit="64MiB")``, or ``app.add_middleware(PoolMiddleware, limit="64MiB")``. Whatever a
    request allocates is charged to a pool of its own: endpoints, those in Starlette's thread pool, dependencies, the
    tasks that it starts, streaming responses, background tasks and websockets. To that end pools follow their context
    on the server's event loop (:func:`mempool.follow_context`) until the app shuts down. What a task of a request
    allocates after the request has ended is charged to the app's pool. The request's pool ends with its last user; what
    it leaves behind (a cache that the first request fills) stays charged to the app's pool as long as it lives. An
    app's start and shutdown are charged to neither.

    Before the response has started, a refusal becomes ``503 Service Unavailable``. Its JSON body has ``error``
    (``"out_of_memory"``) and, as in :func:`mempool.oom_info`, ``reason``, ``pool``, ``requested``, ``limit`` and
    ``in_use``, in bytes. ``Retry-After`` is there only where others' memory was in the way: what the request's own
    limit refuses would be refused again. The answer takes the place of a status of 500 or above that the app, or a
    middleware of its framework, makes of the error. After the start the error goes on to the server, which ends the
    stream; a websocket is closed with code 1013.

    Args:
        app: the ASGI application.
        limit: most bytes of live blocks of one request, as for :class:`mempool.MemoryPool`; None for no limit.
        app_limit: likewise of all its requests together.
        device: whose memory is bounded; mempool is enabled for it if it is not.
        name: of the app's pool in statistics; a request's is ``"{name} request"``.

    With ``MEMPOOL_DISABLE=1`` requests run without limits, and one warning says so.

    Raises:
        ConfigError: a size or a device that does not parse.
        DeviceError: the device cannot be used.
    """

    def __init__(
        self,
        app: App,
        limit: Size | None = None,
        app_limit: Size | None = None,
        device: Device = "cpu",
        *,
        name: str = "app",
    ) -> None:
        self._app = app
        self._pools = RequestPools(limit, app_limit, device, name)
        self._stay = Entry(self.pool) if self._pools.is_active else None  # of tasks that outlive their requests
        self._follower = LoopFollower()

    @property
    def pool(self) -> MemoryPool:
        """The app's pool, which all requests are charged to."""
        return self._pools.app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serves one connection, as ASGI has it."""
        kind = scope["type"]
        if self._stay is None or kind not in ("http", "websocket", "lifespan"):
            return await self._app(scope, receive, send)
        self._follower.begin()
        if kind == "lifespan":
            try:
                return await self._app(scope, receive, send)
            finally:
                self._follower.end()
        pool = self._pools.open()
        answer = _Answer(send, pool) if kind == "http" else _Socket(send)
        try:
            await self._serve(pool, scope, receive, answer.send)
        except BaseException as error:
            refusal = None if isinstance(error, asyncio.CancelledError) else refusal_in(error, pool)
            if not await answer.fail(refusal):
                raise
            _log.info("a request was refused memory: %s", error)
        else:
            await answer.end()

    async def _serve(self, pool: MemoryPool, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        work = self._app(scope, receive, send)
        coroutine = work if isinstance(work, CoroutineType) else _coroutine(work)
        if not is_following():  # the server made this task before anybody could see to it
            return await in_pool(pool, coroutine)
        assert self._stay is not None
        await stay(pool, self._stay.place, coroutine)


class _Answer:
    """The response to one request. A failure of the app's waits until it is known whether memory was the reason."""

    __slots__ = ("_pool", "_send", "_started", "_withheld")

    def __init__(self, send: Send, pool: MemoryPool) -> None:
        self._send = send
        self._pool = pool
        self._started = False
        self._withheld: list[Message] = []

    async def send(self, message: Message) -> None:
        if self._withheld:
            self._withheld.append(message)
            return
        if message["type"] == "http.response.start":
            if message["status"] >= 500 and was_refused(self._pool):
                self._withheld.append(message)
                return
            self._started = True
        await self._send(message)

    async def end(self) -> None:
        """The app has returned: what it withheld was its answer to an error that it caught."""
        if self._withheld:
            await self._refuse(untold_refusal(self._pool))

    async def fail(self, refusal: Refusal | None) -> bool:
        """The app has raised, for want of memory or (None) otherwise. Whether the client has its answer."""
        if refusal is not None and not self._started:
            await self._refuse(refusal)
            return True
        for message in self._withheld:
            await self._send(message)
        return False

    async def _refuse(self, refusal: Refusal) -> None:
        await self._send({"type": "http.response.start", "status": 503, "headers": refusal.headers()})
        await self._send({"type": "http.response.body", "body": refusal.body()})


class _Socket:
    """The other side of a websocket."""

    __slots__ = ("_closed", "_send")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._closed = False

    async def send(self, message: Message) -> None:
        self._closed |= message["type"] in ("websocket.close", "websocket.http.response.start")
        await self._send(message)

    async def end(self) -> None:
        pass

    async def fail(self, refusal: Refusal | None) -> bool:
        if refusal is None or self._closed:
            return False
        await self._send({"type": "websocket.close", "code": _TRY_AGAIN_LATER, "reason": "out of memory"})
        return True


async def _coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable
