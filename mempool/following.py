"""Pools that follow a context: into the tasks and threads that a task starts, and over its every ``await``.

A context (``contextvars``) records the pools that it is in; this module puts them on the stack of the thread that runs
a step of it. Python has no hook for a switch of context, so that is done where contexts are switched: in tasks, by a
task factory; in threads, where work is handed to them.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import threading
import types
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

from mempool import _core
from mempool.coroutines import Held, name_like
from mempool.errors import ConfigError
from mempool.pools import MemoryPool
from mempool.pressure import chain_callback_error
from mempool.scopes import Entry, Place, context, end_those_of_others, run_step

T = TypeVar("T")


def _entries_of(places: tuple[Place, ...], task: object) -> tuple[Entry, ...]:
    """The entries to enter for the stays of a context.

    A task's own stays are entered themselves, so that they end with their blocks; for inherited ones new entries stand
    in. A closed pool is entered, too, and refuses allocations.
    """
    if not places:
        return ()
    entries = []
    for place in places:
        entry = place.entry
        if entry is None:
            continue
        is_own = task is not None and place.task is task and not entry.entered
        entries.append(entry if is_own else Entry(entry.pool, is_checked=False))
    return tuple(entries)


def _call_in(places: tuple[Place, ...], function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    return run_step(_entries_of(places, None), functools.partial(function, *args, **kwargs), follows=True)


def _call(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    return _call_in(context.get(), function, *args, **kwargs)


async def _followed(held: Held) -> Any:
    """Resumes a coroutine with the pools of its context set around each step."""
    return await _follow(held.take(), asyncio.current_task())


@types.coroutine
def _follow(inner: Coroutine[Any, Any, T], task: object) -> Generator[Any, Any, T]:
    """``run_step`` for each step of a task's coroutine, in one frame: every request of a service goes through it."""
    following = (asyncio._get_running_loop(),)
    step: tuple[Callable[..., Any], tuple[Any, ...]] = (inner.send, (None,))
    while True:
        end_those_of_others()
        try:  # no local holds an entry: it would keep the pool while the task waits
            yielded = _core.call_in_pools(_entries_of(context.get(), task), following, context, None, *step)
        except StopIteration as stop:
            result: T = stop.value
            return result
        except BaseException as error:
            chain_callback_error(error)
            raise
        try:
            step = (inner.send, ((yield yielded),))
        except BaseException as thrown:
            step = (inner.throw, (thrown,))


async def stay(pool: MemoryPool, around: Place, coroutine: Coroutine[Any, Any, T]) -> T:
    """A coroutine in the pool, as of now: as if within ``with use_pool(pool):``, in a fraction of its time.

    Expects that the task that runs this is followed. ``around``: a place that does not end with this stay, and which
    tasks that the coroutine leaves behind go on in.
    """
    entry = Entry(pool, is_checked=False)
    entry.place.task = asyncio.current_task()
    outer = context.get()
    context.set((*outer, around, entry.place))
    try:
        # The end of this step of the task takes it off, should an interrupt come; the follower enters it for the next.
        entry.enter()
        entry.followed = True
        return await coroutine
    finally:
        entry.place.entry = None
        entry.leave()
        context.set(outer)


class _FollowingExecutor(ThreadPoolExecutor):
    """The loop's default executor: a function runs in the pools of the context that submitted it."""

    def __init__(self, inner: Executor | None) -> None:
        super().__init__(thread_name_prefix="asyncio")  # starts no thread before it is used
        self._inner = inner
        self.is_following = True

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        submit = super().submit if self._inner is None else self._inner.submit
        if not self.is_following:
            return submit(fn, *args, **kwargs)
        return submit(_call_in, context.get(), fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if self._inner is not None:
            self._inner.shutdown(wait, cancel_futures=cancel_futures)
        super().shutdown(wait, cancel_futures=cancel_futures)


class _AnyioThreads:
    """``anyio.to_thread.run_sync``, which Starlette's thread pool goes through, wrapped while any loop follows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._original: Callable[..., Any] | None = None
        self._wrapped: Callable[..., Any] | None = None

    def begin(self) -> None:
        try:
            to_thread: Any = importlib.import_module("anyio.to_thread")
        except ImportError:  # it is not installed, so that nothing goes through it
            return
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            original = self._original = to_thread.run_sync

            @functools.wraps(original)
            async def run_sync(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                return await original(functools.partial(_call, func), *args, **kwargs)

            to_thread.run_sync = self._wrapped = run_sync

    def end(self) -> None:
        with self._lock:
            if self._users == 0:
                return
            self._users -= 1
            if self._users == 0:
                to_thread: Any = importlib.import_module("anyio.to_thread")
                if to_thread.run_sync is self._wrapped:  # else another library wrapped it again, around ours
                    to_thread.run_sync = self._original
                self._original = self._wrapped = None


_anyio = _AnyioThreads()


class FollowHandle:
    """What :func:`follow_context` returns. ``remove()``, or the end of a ``with`` block, undoes it."""

    __slots__ = ("_executor", "_factory", "_is_following", "_loop", "_previous")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop: asyncio.AbstractEventLoop | None = loop
        self._is_following = True
        previous: Any = loop.get_task_factory()
        self._previous = previous

        def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any) -> Any:
            followed: Any = coroutine
            if self._is_following and asyncio.iscoroutine(coroutine):
                followed = _followed(Held(coroutine))
                name_like(followed, coroutine)
            if previous is not None:
                return previous(loop, followed, **kwargs)
            return asyncio.Task(followed, loop=loop, **kwargs)

        self._factory = factory
        loop.set_task_factory(factory)
        # There is no public way to ask for it; a loop that hides it (uvloop) gets one that is new.
        self._executor = _FollowingExecutor(getattr(loop, "_default_executor", None))
        loop.set_default_executor(self._executor)
        _anyio.begin()

    def remove(self) -> None:
        """Tasks that are created from now on do not follow; running ones go on. Has no effect the second time."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        self._is_following = False
        if loop.get_task_factory() is self._factory:
            loop.set_task_factory(self._previous)
        self._executor.is_following = False
        inner = self._executor._inner
        if getattr(loop, "_default_executor", None) is self._executor and isinstance(inner, ThreadPoolExecutor):
            loop.set_default_executor(inner)
        _anyio.end()

    def __enter__(self) -> FollowHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def follow_context(loop: asyncio.AbstractEventLoop | None = None) -> FollowHandle:
    """Makes pools follow their context on an event loop: the running one, or the given one before it runs.

    In tasks that are created afterwards ``with use_pool(pool):`` may stay open across an ``await``. The pool also
    charges the tasks that are started inside the block (``gather``, ``TaskGroup``, ``create_task``), and the threads
    that work for them: those of ``asyncio.to_thread``, of the loop's default executor and of
    ``anyio.to_thread.run_sync``, which Starlette and FastAPI use. A task that outlives the block is charged to what is
    around the block, from then on. A block that a function opens in one of these threads and does not close (a
    generator dependency of FastAPI) ends with the step. A step of a task costs a few microseconds more.

    Not covered: tasks that run already (call it before, with ``asyncio.Runner().get_loop()``, or where a server
    starts); threads of your own, which are charged to the device (use :func:`bind`); a default executor that is set
    afterwards; a ``run_sync`` that was imported from anyio before. A loop that does not show its default executor
    (uvloop) gets a new one. Calling it again on the same loop wraps the first call; remove the handles in reverse
    order.

    Raises:
        RuntimeError: no loop is given, and none runs.
        ConfigError: `loop` is no event loop.
    """
    if loop is None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise RuntimeError("follow_context: no event loop runs here, so name one: follow_context(loop).") from error
    if not isinstance(loop, asyncio.AbstractEventLoop):
        raise ConfigError(f"follow_context wants an event loop, not {loop!r}.")
    return FollowHandle(loop)
