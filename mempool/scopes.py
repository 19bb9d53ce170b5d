"""The ways to charge new blocks to a pool: use_pool for a thread, in_pool for a coroutine, bind for a function."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
import threading
import types
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, overload

from mempool import _core
from mempool._device import Device, allocator, require_enabled
from mempool.errors import ConfigError, PoolClosedError
from mempool.pools import MemoryPool
from mempool.pressure import chain_callback_error

P = ParamSpec("P")
T = TypeVar("T")
Y = TypeVar("Y")
S = TypeVar("S")


class Place:
    """What a context knows of a stay: contexts are copied and kept, and must keep no pool and no task alive."""

    __slots__ = ("entry", "task")

    def __init__(self, entry: Entry) -> None:
        self.entry: Entry | None = entry  # None once its block has ended, wherever
        self.task: object = None  # that was running when it began


class Entry(_core.PoolEntry):
    """One stay in a pool; the compiled part keeps each thread's stack of them."""

    __slots__ = ("followed", "place", "pool", "suspended", "watch")

    def __init__(self, pool: MemoryPool, is_checked: bool = True) -> None:
        if is_checked:
            if pool.closed:
                raise PoolClosedError(f"pool '{pool.name}' is closed: it takes no new blocks.")
            require_enabled(pool.device, f"pool '{pool.name}' cannot be entered")
        super().__init__(pool._handle)
        self.pool = pool
        self.place = Place(self)
        self.suspended = False  # other code of this thread ran in between: it was taken off the stack
        self.followed = False  # taken off and put on again around each step of its context
        self.watch: asyncio.Handle | None = None


# The stays that a context is in, the innermost last. Context-following tasks and threads take their pools from it.
context: ContextVar[tuple[Place, ...]] = ContextVar("mempool.pools", default=())


class _Local(threading.local):
    def __init__(self) -> None:
        self.watched: list[Entry] = []  # opened while an event loop ran, and not followed
        # This thread runs a step of a context that is followed, in that event loop (None: in a worker thread).
        self.following: tuple[asyncio.AbstractEventLoop | None] | None = None


local = _Local()
_THE_LOOP = object()  # runs, and not a task or a callback of it


def is_following() -> bool:
    """Whether what runs here is followed: not what runs in another loop that it has started."""
    return local.following is not None and local.following[0] is asyncio._get_running_loop()


class use_pool(_core.PoolScope):
    """``with use_pool(pool):`` charges the new blocks of this thread to ``pool``. Nests; workers do not inherit it.

    A ``with`` that stays open while a coroutine is suspended would charge other tasks' blocks to the pool. On asyncio
    that is found out, ended when mempool sees another task or the loop itself, and raised as RuntimeError at the end of
    the block (or noted on the exception that ends it): use :func:`in_pool` there, or :func:`follow_context`. A
    generator that yields inside the block leaves the pool set for whoever consumes it, as with ``torch.no_grad()``. A
    block that ends on another thread than it began on leaves the first thread's pool at once, and warns the first time.

    Raises:
        PoolClosedError: on entry, when the pool is closed.
        NotEnabledError: on entry, when mempool is not enabled for the pool's device.
        RuntimeError: on exit, when the block was open across an ``await``.
    """

    __slots__ = ("_pool",)

    def __init__(self, pool: MemoryPool) -> None:
        super().__init__()
        self._pool = _require_pool(pool, "use_pool")

    # Called by the compiled part, which then enters the entry, or has left it. An interrupt may strike in here only.

    def _open(self) -> Entry:
        entry = Entry(self._pool)
        loop = asyncio._get_running_loop()
        if loop is not None:
            entry.place.task = asyncio.current_task(loop)
        outer = context.get()
        try:
            context.set((*(place for place in outer if place.entry is not None), entry.place))
            if is_following():
                entry.followed = True
            elif loop is not None:
                _watch(entry, loop)
            return entry
        except BaseException:
            context.set(outer)
            raise

    def _close(self, entry: Entry, was_elsewhere: bool, exc: BaseException | None) -> None:
        entry.place.task = None
        if entry.watch is not None:
            entry.watch.cancel()
            entry.watch = None
        if entry in local.watched:
            local.watched.remove(entry)
        forget(entry)
        chain_callback_error(exc)
        if was_elsewhere:
            _warn_of_another_thread(entry)
        elif entry.suspended:
            _report_suspended(entry, exc)


def _require_pool(pool: MemoryPool, what: str) -> MemoryPool:
    if not isinstance(pool, MemoryPool):
        raise ConfigError(f"{what} wants a MemoryPool, not {pool!r}.")
    return pool


def _watch(entry: Entry, loop: asyncio.AbstractEventLoop) -> None:
    """Has the entry end as soon as its task is suspended and mempool sees it, or soon after."""
    end_suspended(entry.place.task)
    # Runs only if control returns to the loop, and then before the suspended task goes on.
    entry.watch = loop.call_soon(end_suspended, _THE_LOOP)
    local.watched.append(entry)


def end_suspended(running: object) -> None:
    """Ends the watched entries of this thread that are not of the task that runs (None: of a callback of the loop)."""
    for entry in list(local.watched):
        is_over = entry.place.entry is None  # on another thread
        if is_over or running is _THE_LOOP or entry.place.task is not running:
            local.watched.remove(entry)
            entry.suspended = entry.leave() or entry.suspended


def _report_suspended(entry: Entry, exc: BaseException | None) -> None:
    message = (
        f"a plain `with use_pool({entry.pool.name!r})` was open across an await: other tasks ran in between. "
        "Use `await mempool.in_pool(pool, coroutine)` instead, or call mempool.follow_context() before the task begins."
    )
    if exc is None:
        raise RuntimeError(message)
    # What ends the block (a cancellation, say) is worth more than this; it carries the message along.
    if hasattr(exc, "add_note"):  # Python 3.11
        exc.add_note(message)


_has_warned = False


def _warn_of_another_thread(entry: Entry) -> None:
    global _has_warned
    if _has_warned:
        return
    _has_warned = True
    warnings.warn(
        f"`with use_pool({entry.pool.name!r})` began on one thread and ended on another, as a generator does whose "
        "steps run in a thread pool: what the first thread ran meanwhile was charged to the pool, and what the second "
        "ran was not. Use mempool.in_pool for coroutines, mempool.bind or mempool.to_thread for functions, or "
        "mempool.follow_context(). Said once.",
        RuntimeWarning,
        stacklevel=3,
    )


def current_pool(device: Device = None) -> MemoryPool | None:
    """The pool that this thread's new blocks of a device are charged to; None for the device itself.

    With ``device=None`` the pool that was entered last, whichever device it is of. In a pressure callback it is None.
    """
    if local.watched:
        with contextlib.suppress(RuntimeError):
            end_suspended(asyncio.current_task())
    name = None if device is None else allocator(device).name
    for entry in reversed(_core.pool_entries()):
        if entry is None:
            return None
        if name is None or entry.pool.device == name:
            pool: MemoryPool = entry.pool
            return pool
    return None


def leave_pools() -> int:
    """Takes this thread out of every pool that it is in: after an interrupt, or of a worker thread that was left in
    one.

    Blocks (``with use_pool``) that are open stay open, and end without an error. Returns how many pools were left.
    """
    left = _core.leave_pools_since(0)
    context.set(())
    local.watched.clear()
    return len(left)


class Step(contextlib.AbstractContextManager[None]):
    """Pools set for one step of a coroutine, or one call, and everything that was opened in it taken off at its end."""

    __slots__ = ("_entries", "_follows", "_mark", "_outer")

    def __init__(self, entries: tuple[Entry, ...], follows: bool = False) -> None:
        self._entries = entries  # on no stack
        self._follows = follows  # what is opened in the step and not closed goes on in the next, without a word
        self._outer = local.following
        self._mark = 0

    def __enter__(self) -> None:
        if local.watched:
            with contextlib.suppress(RuntimeError):
                end_suspended(asyncio.current_task())
        self._mark = _core.pool_mark()
        for entry in self._entries:
            entry.enter()
        self._outer = local.following
        local.following = (asyncio._get_running_loop(),) if self._follows else None

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        local.following = self._outer
        chain_callback_error(exc)
        for entry in _core.leave_pools_since(self._mark):
            entry.suspended = entry not in self._entries and not entry.followed


@types.coroutine
def drive(
    inner: Any,
    step_of: Callable[[BaseException | None], tuple[contextlib.AbstractContextManager[object], BaseException | None]],
) -> Generator[Any, Any, Any]:
    """Resumes ``inner``, each time in the step that ``step_of`` gives for what is to be thrown into it; it may change
    that."""
    value: Any = None
    error: BaseException | None = None
    while True:
        step, error = step_of(error)
        with step:
            try:
                yielded = inner.send(value) if error is None else inner.throw(error)
            except StopIteration as stop:
                return stop.value
        del step  # while this waits it keeps no pool
        value, error = None, None
        try:
            value = yield yielded
        except BaseException as thrown:
            error = thrown


async def _drive(pool: MemoryPool, inner: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """Resumes ``inner`` with the pool set around each step and nothing set in between."""
    entry = Entry(pool)
    told = False

    def step_of(
        error: BaseException | None,
    ) -> tuple[contextlib.AbstractContextManager[object], BaseException | None]:
        nonlocal told
        if pool.closed and not told:
            # The coroutine learns of it where it waits and may clean up, in no pool. What else was to be thrown into it
            # (a cancellation) comes first.
            told = True
            if error is None:
                error = PoolClosedError(f"pool '{pool.name}' was closed: it takes no new blocks.")
        return contextlib.nullcontext() if told else _Stay(entry), error

    try:
        result: T = await drive(inner, step_of)
        return result
    finally:
        entry.place.entry = None


class _Stay(Step):
    """A step of what in_pool drives: the context says so, too, for tasks and threads that the step starts."""

    __slots__ = ()

    def __init__(self, entry: Entry) -> None:
        super().__init__((entry,), follows=is_following())

    def __enter__(self) -> None:
        super().__enter__()
        context.set((*context.get(), self._entries[0].place))

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        forget(self._entries[0])
        super().__exit__(kind, exc, traceback)


def forget(entry: Entry) -> None:
    """Takes the stay out of this context, if it is there, and those that ended elsewhere."""
    places = context.get()
    if places and places[-1] is entry.place:
        context.set(places[:-1])
    elif places:
        context.set(tuple(place for place in places if place is not entry.place and place.entry is not None))


async def _driven(pool: MemoryPool, inner: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    if is_following():  # then whatever follows does it, in the order in which pools were entered
        with use_pool(pool):
            return await inner
    return await _drive(pool, inner)


def _driven_generator(pool: MemoryPool, make: Callable[..., AsyncGenerator[Y, S]]) -> Callable[..., Any]:
    """An asynchronous generator function: that of ``make``, each of whose steps is charged to the pool."""

    async def driven(*args: Any, **kwargs: Any) -> AsyncGenerator[Y, S]:
        inner = make(*args, **kwargs)
        sent: Any = None
        error: BaseException | None = None
        try:
            while True:
                try:
                    item = await _drive(pool, inner.asend(sent) if error is None else inner.athrow(error))
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
            await (inner.aclose() if pool.closed else _drive(pool, inner.aclose()))

    return driven


# Coroutines of others whose work goes on in another thread or task, by module and name: in no pool of ours.
_ELSEWHERE = {
    ("asyncio", "to_thread"): "mempool.to_thread(pool, function, *args)",
    ("anyio.to_thread", "run_sync"): "anyio.to_thread.run_sync(mempool.bind(pool, function))",
    ("starlette.concurrency", "run_in_threadpool"): "run_in_threadpool(mempool.bind(pool, function))",
}
if sys.version_info < (3, 12):  # it starts a task there
    _ELSEWHERE["asyncio", "wait_for"] = "asyncio.wait_for(mempool.in_pool(pool, coroutine), timeout)"


def _runs_elsewhere(coroutine: object) -> str | None:
    """What to write instead of a coroutine that does its work on another thread or in another task."""
    code = getattr(coroutine, "cr_code", None)
    for (module, name), instead in _ELSEWHERE.items():
        known = getattr(sys.modules.get(module), name, None)
        if code is not None and getattr(inspect.unwrap(known) if known else None, "__code__", None) is code:
            return instead
    return None


@overload
def in_pool(pool: MemoryPool, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]: ...
@overload
def in_pool(pool: MemoryPool, coroutine: AsyncGenerator[Y, S]) -> AsyncGenerator[Y, S]: ...


def in_pool(
    pool: MemoryPool, coroutine: Coroutine[Any, Any, T] | AsyncGenerator[Y, S]
) -> Coroutine[Any, Any, T] | AsyncGenerator[Y, S]:
    """``await in_pool(pool, coroutine)``: with the blocks that it makes charged to ``pool``, in whatever order tasks
    run.

    The pool is set around every resume of the coroutine, and unset while it is suspended, so tasks under
    ``asyncio.gather`` each keep to their own. ``async for x in in_pool(pool, async_generator)`` likewise. A task that
    the coroutine *starts*, and a thread that works for it, do not inherit the pool, unless :func:`follow_context` is
    on: wrap what runs there in ``in_pool``, :func:`to_thread` or :func:`bind`.

    Raises:
        ConfigError: at the call, for what is no coroutine or asynchronous generator (a future or task runs elsewhere:
            wrap the coroutine that it is made of), and, without ``follow_context``, for a coroutine that only waits for
            a thread, such as ``asyncio.to_thread(f)``.
        NotEnabledError: mempool is not enabled for the pool's device.
        PoolClosedError: the pool is closed at the start, or was closed meanwhile; it is raised inside the coroutine,
            where it waits.
    """
    _require_pool(pool, "in_pool")
    require_enabled(pool.device, f"pool '{pool.name}' cannot be entered")
    if isinstance(coroutine, AsyncGenerator):
        generator: AsyncGenerator[Y, S] = _driven_generator(pool, lambda: coroutine)()
        return generator
    is_generator = isinstance(coroutine, types.GeneratorType) and inspect.isawaitable(coroutine)
    if not isinstance(coroutine, Coroutine) and not is_generator:
        raise ConfigError(
            f"in_pool wants a coroutine or an asynchronous generator, not {coroutine!r}: what a future, a task or a "
            "thread does is not done here. Wrap the coroutines it is made of, or use mempool.to_thread."
        )
    instead = None if is_following() else _runs_elsewhere(coroutine)
    if instead is not None:
        coroutine.close()
        raise ConfigError(f"in_pool would charge nothing: that coroutine's work runs elsewhere. Write {instead}.")
    return _driven(pool, coroutine)


async def to_thread(pool: MemoryPool, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """``asyncio.to_thread`` with the function's blocks charged to ``pool``. Raises what :func:`bind` raises."""
    return await asyncio.to_thread(bind(pool, function), *args, **kwargs)


def bind(pool: MemoryPool, function: Callable[P, T]) -> Callable[P, T]:
    """``function`` with its blocks charged to ``pool``, for executors and callbacks that run on other threads.

    Of a coroutine function, or an asynchronous generator's, what it returns runs :func:`in_pool`.

    Raises:
        ConfigError: it cannot be called, or is a generator function: its body would run outside of the call.
        NotEnabledError: mempool is not enabled for the pool's device.
    """
    _require_pool(pool, "bind")
    if not callable(function):
        raise ConfigError(f"bind wants a function, not {function!r}.")
    call = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    kinds = (function, call)
    if any(inspect.isgeneratorfunction(each) for each in kinds):
        raise ConfigError(f"bind cannot charge the blocks of a generator: {function!r}. Bind what consumes it.")
    require_enabled(pool.device, f"nothing can be bound to pool '{pool.name}'")
    if any(inspect.isasyncgenfunction(each) for each in kinds):
        make: Any = function
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
        # Of a function that only makes one: its work is still to come.
        is_to_come = inspect.iscoroutine(result) or inspect.isasyncgen(result)
        return in_pool(pool, result) if is_to_come else result  # type: ignore[no-any-return]

    return bound
