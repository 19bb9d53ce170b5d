"""Interceptors of gRPC's servers: each call of a method in a pool of its own."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import grpc

from mempool._device import Device, Size
from mempool.coroutines import in_pool
from mempool.pools import MemoryPool
from mempool.scopes import use_pool
from mempool.serving.refusals import refusal_in
from mempool.serving.request_pools import RequestPools

T = TypeVar("T")

_log = logging.getLogger("mempool")


def _details_of(error: Exception, pool: MemoryPool) -> str | None:
    """The details of the status RESOURCE_EXHAUSTED, as JSON; None for an error that is no refusal."""
    refusal = refusal_in(error, pool)
    if refusal is None:
        return None
    _log.info("a call was refused memory: %s", error)
    return json.dumps({**refusal.facts(), "may_pass_later": refusal.may_pass_later})


class _Interceptor:
    """What the interceptors of both kinds of servers share: wrapping the four kinds of methods."""

    def __init__(
        self,
        limit: Size | None = None,
        total_limit: Size | None = None,
        device: Device = "cpu",
        *,
        name: str = "grpc",
    ) -> None:
        self._pools = RequestPools(limit, total_limit, device, name)

    @property
    def pool(self) -> MemoryPool:
        """The pool that all calls are charged to."""
        return self._pools.app

    def _within(self, handler: Any) -> Any:
        """The handler of a method, each of whose calls has a pool of its own; None, for a method that is not there."""
        if handler is None or not self._pools.is_active:
            return handler
        streams = (handler.request_streaming, handler.response_streaming)
        kind = "_".join("stream" if each else "unary" for each in streams)
        wrap = self._stream if handler.response_streaming else self._call
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(wrap(getattr(handler, kind)), handler.request_deserializer, handler.response_serializer)

    def _call(self, method: Callable[..., Any]) -> Callable[..., Any]:
        raise NotImplementedError

    def _stream(self, method: Callable[..., Any]) -> Callable[..., Any]:
        raise NotImplementedError


class PoolInterceptor(_Interceptor, grpc.ServerInterceptor):  # type: ignore[misc]
    """Bounds the memory of each call of a gRPC server's methods.

    ``grpc.server(…, interceptors=[PoolInterceptor("64MiB")])``. A call that asks for more ends with
    ``RESOURCE_EXHAUSTED``. Its details are JSON, as the body of :class:`PoolMiddleware`'s answer, with
    ``may_pass_later`` (others' memory was in the way). The thread that serves the call is charged, and for a stream
    each of its steps; wrap functions for other threads in :func:`mempool.bind`.

    Args:
        limit: most bytes of live blocks of one call, as for :class:`mempool.MemoryPool`; None for no limit.
        total_limit: likewise of all calls together, in this process.
        device: whose memory is bounded; mempool is enabled for it if it is not.
        name: of the pool of all calls in statistics; a call's is ``"{name} request"``.

    With ``MEMPOOL_DISABLE=1`` calls run without limits, and one warning says so.

    Raises:
        ConfigError: a size or a device that does not parse.
        DeviceError: the device cannot be used.
    """

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """As gRPC has it."""
        return self._within(continuation(handler_call_details))

    def _call(self, method: Callable[..., T]) -> Callable[..., T]:
        return _in_threads(self._pools, method)

    def _stream(self, method: Callable[..., Iterator[T]]) -> Callable[..., Iterator[T]]:
        return _in_threads_by_steps(self._pools, method)


def _in_threads(pools: RequestPools, method: Callable[..., T]) -> Callable[..., T]:
    def call(request: Any, context: Any) -> T:
        pool = pools.open()
        return _or_abort(pool, context, lambda: method(request, context))

    return call


def _in_threads_by_steps(pools: RequestPools, method: Callable[..., Iterator[T]]) -> Callable[..., Iterator[T]]:
    def stream(request: Any, context: Any) -> Iterator[T]:
        pool = pools.open()
        answers = iter(_or_abort(pool, context, lambda: method(request, context)))
        end: Any = object()
        while (answer := _or_abort(pool, context, lambda: next(answers, end))) is not end:
            yield answer

    return stream


def _or_abort(pool: MemoryPool, context: Any, step: Callable[[], T]) -> T:
    try:
        with use_pool(pool):
            return step()
    except Exception as error:
        details = _details_of(error, pool)
        if details is None:
            raise
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, details)
        raise  # not reached: abort() raises


class AioPoolInterceptor(_Interceptor, grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """The same for ``grpc.aio.server(interceptors=[…])``, whose methods are coroutines and asynchronous generators.

    It takes the arguments of :class:`PoolInterceptor`. Tasks and threads that a method starts are charged where pools
    follow their context: call :func:`mempool.follow_context` before the server starts.
    """

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """As gRPC has it."""
        return self._within(await continuation(handler_call_details))

    def _call(self, method: Callable[..., Any]) -> Callable[..., Any]:
        if not inspect.iscoroutinefunction(method):
            return _in_threads(self._pools, method)

        async def call(request: Any, context: Any) -> Any:
            pool = self._pools.open()
            try:
                return await in_pool(pool, method(request, context))
            except Exception as error:
                await _abort(error, pool, context)
                raise

        return call

    def _stream(self, method: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(method):  # it writes its answers to the context
            return self._call(method)
        if not inspect.isasyncgenfunction(method):
            return _in_threads_by_steps(self._pools, method)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            pool = self._pools.open()
            try:
                async for answer in in_pool(pool, method(request, context)):
                    yield answer
            except Exception as error:
                await _abort(error, pool, context)
                raise

        return stream


async def _abort(error: Exception, pool: MemoryPool, context: Any) -> None:
    """Ends the call with its status if the error is a refusal; then it raises."""
    details = _details_of(error, pool)
    if details is not None:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, details)
