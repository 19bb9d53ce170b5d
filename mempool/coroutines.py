"""Work that is charged to a pool wherever it goes on: ``in_pool`` for a coroutine, ``bind`` for a function."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any, ParamSpec, TypeVar, overload

from mempool._device import require_enabled
from mempool.errors import ConfigError, PoolClosedError
from mempool.pools import MemoryPool
from mempool.scopes import Entry, is_following, require_pool, run_step, use_pool

P = ParamSpec("P")
T = TypeVar("T")
Y = TypeVar("Y")
S = TypeVar("S")


class Held:
    """A coroutine that its wrapper has not begun. It ends with the wrapper, silently: Python warns of that one."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def take(self) -> Any:
        inner, self._inner = self._inner, None
        return inner

    def __del__(self) -> None:
        if self._inner is not None:
            close_unstarted(self._inner)


def close_unstarted(coroutine: object) -> None:
    if inspect.iscoroutine(coroutine) and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
        coroutine.close()


def name_like(wrapper: Any, inner: object) -> None:
    """Has tasks and warnings name the coroutine that is wrapped."""
    for name in ("__name__", "__qualname__"):
        setattr(wrapper, name, getattr(inner, name, getattr(wrapper, name)))


def proceed(inner: Any, value: Any, error: BaseException | None) -> Any:
    return inner.send(value) if error is None else inner.throw(error)


@types.coroutine
def drive(resume: Callable[[Any, BaseException | None], Any]) -> Generator[Any, Any, Any]:
    """Goes through a coroutine: ``resume(value, error)`` sends the value into it, or throws the error, as one step."""
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            yielded = resume(value, error)
        except StopIteration as stop:
            return stop.value
        value, error = None, None
        try:
            value = yield yielded
        except BaseException as thrown:
            error = thrown


async def _drive(pool: MemoryPool, begin: Callable[[], Awaitable[T]]) -> T:
    """Resumes what ``begin`` returns with the pool set around each step and nothing set in between."""
    entry = Entry(pool)
    inner = begin()
    told = False

    def resume(value: Any, error: BaseException | None) -> Any:
        nonlocal told
        if pool.closed and not told:
            # The coroutine learns of it where it waits and may clean up, in no pool. What else was to be thrown into it
            # (a cancellation) comes first.
            told = True
            if error is None:
                error = PoolClosedError(f"pool '{pool.name}' was closed: it takes no new blocks.")
        if told:
            return proceed(inner, value, error)
        return run_step((entry,), proceed, inner, value, error, follows=is_following(), place=entry.place)

    try:
        result: T = await drive(resume)
        return result
    finally:
        entry.place.entry = None


async def _driven(pool: MemoryPool, held: Held) -> Any:
    if is_following():  # then the follower sets the pool, in the order in which pools were entered
        with use_pool(pool):
            return await held.take()
    return await _drive(pool, held.take)


def _advance(inner: AsyncGenerator[Y, Any], sent: Any, error: BaseException | None) -> Awaitable[Y]:
    return inner.asend(sent) if error is None else inner.athrow(error)


def _driven_generator(pool: MemoryPool, make: Callable[..., AsyncGenerator[Y, S]]) -> Callable[..., Any]:
    """An asynchronous generator function: that of ``make``, each of whose steps is charged to the pool."""

    async def driven(*args: Any, **kwargs: Any) -> AsyncGenerator[Y, S]:
        inner = make(*args, **kwargs)
        sent: Any = None
        error: BaseException | None = None
        try:
            while True:
                try:
                    item = await _drive(pool, functools.partial(_advance, inner, sent, error))
                except StopAsyncIteration:
                    return
                sent, error = None, None
                try:
                    sent = yield item
                except GeneratorExit:
                    raise
                except BaseException as thrown:
                    error = thrown
        finally:
            await (inner.aclose() if pool.closed else _drive(pool, inner.aclose))

    return driven


_BIND = (
    "mempool.bind(pool, function) for each function, and mempool.in_pool(pool, coroutine) for each coroutine, it runs"
)
_MAKE_TASKS = "mempool.in_pool(pool, coroutine) where each of the tasks that it waits for is made"
# Whose coroutines and asynchronous generators hand their work to other threads or tasks, by the module that they are
# defined in and by name (None: any other), and what to write instead.
_ELSEWHERE: dict[str, dict[str | None, str]] = {
    "asyncio.threads": {"to_thread": "mempool.to_thread(pool, function, *args)"},
    "asyncio.tasks": {"wait": _MAKE_TASKS},
    "anyio.to_thread": {"run_sync": "anyio.to_thread.run_sync(mempool.bind(pool, function))"},
    "mempool.following": {"run_sync": "anyio.to_thread.run_sync(mempool.bind(pool, function))"},  # its wrapper
    "starlette.concurrency": {"run_in_threadpool": "run_in_threadpool(mempool.bind(pool, function))", None: _BIND},
    **{module: {None: _BIND} for module in ("anyio.to_process", "anyio.to_interpreter", "fastapi.concurrency")},
    **{module: {None: _BIND} for module in ("asgiref.sync", "trio._threads")},
}
_MAKES_A_TASK = sys.version_info < (3, 12)  # asyncio.wait_for does
_TAKES_TASKS_ALONE = sys.version_info >= (3, 11)  # asyncio.wait does


def _frame_of(work: object) -> types.FrameType | None:
    frames: tuple[types.FrameType | None, ...] = tuple(
        getattr(work, name, None) for name in ("cr_frame", "ag_frame", "gi_frame")
    )
    return next(filter(None, frames), None)


def _instead_of(work: object, follows: bool) -> str | None:
    """What to write instead of a coroutine, or an asynchronous generator, that would be charged nothing.

    `follows`: what it starts is charged then, and only what others have started already is not.
    """
    frame = _frame_of(work)
    if frame is None:
        return None
    module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_name
    if (module, name) == ("asyncio.tasks", "wait_for"):
        waited = frame.f_locals.get("fut")
        if asyncio.isfuture(waited):
            return _MAKE_TASKS
        if _MAKES_A_TASK and not follows:
            return "asyncio.wait_for(mempool.in_pool(pool, coroutine), timeout)"
        return _instead_of(waited, follows)
    if follows and not (_TAKES_TASKS_ALONE and (module, name) == ("asyncio.tasks", "wait")):
        return None
    known = _ELSEWHERE.get(module, {})
    return known.get(name, known.get(None))


def _require_done_here(work: object) -> None:
    instead = _instead_of(work, is_following())
    if instead is None:
        return
    frame = _frame_of(work)
    for each in (work, *(frame.f_locals.values() if frame is not None else ())):
        close_unstarted(each)
    raise ConfigError(f"in_pool would charge nothing: that coroutine's work runs elsewhere. Write {instead}.")


@overload
def in_pool(pool: MemoryPool, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]: ...
@overload
def in_pool(pool: MemoryPool, coroutine: AsyncGenerator[Y, S]) -> AsyncGenerator[Y, S]: ...


def in_pool(
    pool: MemoryPool, coroutine: Coroutine[Any, Any, T] | AsyncGenerator[Y, S]
) -> Coroutine[Any, Any, T] | AsyncGenerator[Y, S]:
    """``await in_pool(pool, coroutine)`` charges the blocks of a coroutine to ``pool``, in whatever order tasks run.

    The pool is set around every resume of the coroutine, and unset while it is suspended, so that tasks under
    ``asyncio.gather`` are each charged to their own pool. ``async for x in in_pool(pool, async_generator)`` does the
    same. A task that the coroutine *starts*, and a thread that works for it, do not inherit the pool, unless
    :func:`follow_context` is on: wrap what runs there in ``in_pool``, :func:`to_thread` or :func:`bind`.

    What is made to hand work on and does nothing itself is refused where it is known: ``asyncio.to_thread``, ``wait``
    and ``wait_for``, and those of anyio's, Starlette's, FastAPI's, asgiref's and trio's threads. It cannot be seen in
    wrappers of your own or of other libraries: ``async def f(): await asyncio.to_thread(g)`` is charged what ``f`` does
    itself, which is nothing. Nor can tasks that were made before: they are charged where they were made.

    Raises:
        ConfigError: at the call, for what is no coroutine or asynchronous generator (a future or task runs elsewhere:
            wrap the coroutine that it is made of), and for a coroutine or a generator that is known to have others do
            its work; with ``follow_context`` on, only for one that waits for tasks.
        NotEnabledError: mempool is not enabled for the pool's device.
        PoolClosedError: the pool is closed at the start, or was closed meanwhile; it is raised inside the coroutine,
            where it waits.
    """
    require_pool(pool, "in_pool")
    require_enabled(pool.device, f"pool '{pool.name}' cannot be entered")
    if isinstance(coroutine, AsyncGenerator):
        _require_done_here(coroutine)
        generator: AsyncGenerator[Y, S] = _driven_generator(pool, lambda: coroutine)()
        return generator
    is_generator = isinstance(coroutine, types.GeneratorType) and inspect.isawaitable(coroutine)
    if not isinstance(coroutine, Coroutine) and not is_generator:
        raise ConfigError(
            f"in_pool wants a coroutine or an asynchronous generator, not {coroutine!r}: what a future, a task or a "
            "thread does is not done here. Wrap the coroutines it is made of, or use mempool.to_thread."
        )
    _require_done_here(coroutine)
    driven = _driven(pool, Held(coroutine))
    name_like(driven, coroutine)
    return driven


async def to_thread(pool: MemoryPool, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """``asyncio.to_thread(function, ...)`` with the function's blocks charged to ``pool``.

    Raises:
        ConfigError: as for :func:`bind`.
        NotEnabledError: mempool is not enabled for the pool's device.
    """
    return await asyncio.to_thread(bind(pool, function), *args, **kwargs)


def bind(pool: MemoryPool, function: Callable[P, T]) -> Callable[P, T]:
    """Wraps ``function`` so that its blocks are charged to ``pool``, on whichever thread it runs.

    What a coroutine function or an asynchronous generator function returns runs as by :func:`in_pool`.

    Raises:
        ConfigError: `function` cannot be called, or is a generator function, whose body would run outside of the call.
        NotEnabledError: mempool is not enabled for the pool's device.
    """
    require_pool(pool, "bind")
    if not callable(function):
        raise ConfigError(f"bind wants a function, not {function!r}.")
    call = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    kinds = (function, call)
    if any(inspect.isgeneratorfunction(each) for each in kinds):
        raise ConfigError(f"bind cannot charge the blocks of a generator: {function!r}. Bind what consumes it.")
    require_enabled(pool.device, f"nothing can be bound to pool '{pool.name}'")
    if any(inspect.isasyncgenfunction(each) for each in kinds):

        def make(*args: P.args, **kwargs: P.kwargs) -> Any:
            made = function(*args, **kwargs)
            _require_done_here(made)
            return made

        bound_generator: Any = functools.wraps(function)(_driven_generator(pool, make))
        return bound_generator  # type: ignore[no-any-return]
    if any(inspect.iscoroutinefunction(each) for each in kinds):

        @functools.wraps(function)
        async def bound_coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
            coroutine: Any = function(*args, **kwargs)
            return await in_pool(pool, coroutine)

        return bound_coroutine  # type: ignore[return-value]

    @functools.wraps(function)
    def bound(*args: P.args, **kwargs: P.kwargs) -> T:
        with use_pool(pool):
            result: Any = function(*args, **kwargs)
        # A plain function that only makes a coroutine: the work is still to come.
        is_to_come = inspect.iscoroutine(result) or inspect.isasyncgen(result)
        return in_pool(pool, result) if is_to_come else result  # type: ignore[no-any-return]

    return bound
