"""Requests of any WSGI app (Flask, Django), each in a pool of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from mempool._device import Device, Size
from mempool.pools import MemoryPool
from mempool.scopes import use_pool
from mempool.serving.refusals import Refusal, refusal_in, untold_refusal, was_refused
from mempool.serving.request_pools import RequestPools

Environ: TypeAlias = dict[str, Any]
App: TypeAlias = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


class WsgiPoolMiddleware:
    """Bounds the memory of each request of a WSGI app, and answers 503 where one asks for more.

    ``app = WsgiPoolMiddleware(app, limit="64MiB")``. A request's pool is that of the thread that serves it, while the
    app runs and while the server takes parts of its answer. Threads that the app starts are charged to the device: use
    :func:`mempool.bind`. The answer is that of :class:`PoolMiddleware`; a framework that makes a response of the error
    by itself (Flask) keeps its facts, and the body has null for those. An error after the first part of the body goes
    on to the server.

    The arguments, the errors and ``MEMPOOL_DISABLE`` are as for :class:`PoolMiddleware`.
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

    @property
    def pool(self) -> MemoryPool:
        """The app's pool, which all requests are charged to."""
        return self._pools.app

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Serves one request, as WSGI has it."""
        if not self._pools.is_active:
            return self._app(environ, start_response)
        return _Answer(self._app, environ, start_response, self._pools.open())


class _Answer:
    """The body of one response; the head goes out with the first part of it, or with a refusal in its place."""

    def __init__(self, app: App, environ: Environ, start_response: Callable[..., Any], pool: MemoryPool) -> None:
        self._start_response = start_response
        self._pool = pool
        self._head: tuple[Any, ...] | None = None
        self._started = False
        self._push: Callable[[bytes], Any] = start_response  # until the head is out
        self._body: Iterable[bytes] = ()
        self._parts: Iterator[bytes] = iter(())
        self._first: list[bytes] = []
        try:
            with use_pool(pool):
                self._body = app(environ, self._begin)
                self._parts = iter(self._body)
                self._first = [part for part in [next(self._parts, None)] if part is not None]
        except BaseException as error:
            refusal = refusal_in(error, pool)
            if refusal is None or self._started:
                raise
            self._refuse(refusal)
            return
        if self._head is not None and int(self._head[0].split()[0]) >= 500 and was_refused(pool):
            self._refuse(untold_refusal(pool))
        else:
            self._start()

    def _begin(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        if self._started:
            return self._start_response(status, headers, exc_info)
        self._head = (status, headers) if exc_info is None else (status, headers, exc_info)
        return self._write

    def _write(self, part: bytes) -> Any:
        """What WSGI has for apps that push their body."""
        self._start()
        return self._push(part)

    def _start(self) -> None:
        if not self._started and self._head is not None:
            self._started = True
            self._push = self._start_response(*self._head)

    def _refuse(self, refusal: Refusal) -> None:
        self.close()
        headers = [(name.decode(), value.decode()) for name, value in refusal.headers()]
        self._start_response("503 Service Unavailable", headers)
        self._started = True
        self._body, self._parts, self._first = (), iter(()), [refusal.body()]

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._first:
            return self._first.pop()
        with use_pool(self._pool):
            part = next(self._parts)
        self._start()
        return part

    def close(self) -> None:
        """Ends the app's body, as a server does after the last part."""
        close = getattr(self._body, "close", None)
        if close is not None:
            with use_pool(self._pool):
                close()
