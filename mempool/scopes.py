"""Stays in pools: ``use_pool`` for what a thread does, and what a context knows of it."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from mempool import _core
from mempool._device import Device, allocator, require_enabled
from mempool.errors import ConfigError, PoolClosedError
from mempool.pools import MemoryPool
from mempool.pressure import chain_callback_error

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


class Place:
    """A context's record of a stay. Contexts are copied and kept, and must keep no pool and no task alive."""

    __slots__ = ("entry", "task")

    def __init__(self, entry: Entry) -> None:
        self.entry: Entry | None = entry  # None once its block has ended, on any thread
        self.task: object = None  # the task that was running when the stay began


class Entry(_core.PoolEntry):
    """A stay in a pool. The compiled part keeps each thread's stack of stays."""

    __slots__ = ("block", "place", "pool", "watch")

    def __init__(self, pool: MemoryPool, is_checked: bool = True) -> None:
        if is_checked:
            if pool.closed:
                raise PoolClosedError(f"pool '{pool.name}' is closed: it takes no new blocks.")
            require_enabled(pool.device, f"pool '{pool.name}' cannot be entered")
        super().__init__(pool._handle)
        self.pool = pool
        self.place = Place(self)
        self.block: tuple[types.CodeType, int] | None = None  # the code that it was opened in, and its frame's id()
        self.watch: asyncio.Handle | None = None


# The stays that a context is in, the innermost last. Context-following tasks and threads take their pools from it.
context: ContextVar[tuple[Place, ...]] = ContextVar("mempool.pools", default=())


class _Local(threading.local):
    def __init__(self) -> None:
        self.watched: list[Entry] = []  # opened while an event loop ran, and not followed


local = _Local()
_THE_LOOP = object()  # runs, and not a task or a callback of it


def is_following() -> bool:
    """Whether the code that runs here is followed: code in another loop that it has started is not."""
    following = _core.following()  # (loop,), or (None,) in a worker thread
    return following is not None and following[0] is asyncio._get_running_loop()


class use_pool(_core.PoolScope):
    """``with use_pool(pool):`` charges the new blocks of this thread to ``pool``. Nests; workers do not inherit it.

    One object may be entered again, and by several threads and tasks: each block ends its own stay.

    A ``with`` that stays open while a coroutine is suspended would charge other tasks' blocks to the pool. On asyncio
    mempool detects that, ends the stay when it sees another task or the loop itself, and raises RuntimeError at the end
    of the block (or adds a note to the exception that ends it): use :func:`in_pool` there, or :func:`follow_context`. A
    generator that yields inside the block leaves the pool set for its consumer, as with ``torch.no_grad()``. A block
    that ends on another thread than it began on leaves the first thread's pool at once, and warns the first time.

    Raises:
        ConfigError: `pool` is no pool; on entry, when a subclass has not called ``super().__init__(pool)``.
        PoolClosedError: on entry, when the pool is closed.
        NotEnabledError: on entry, when mempool is not enabled for the pool's device.
        RuntimeError: on exit, when the block was open across an ``await``.
        TypeError: it is copied or pickled.
    """

    __slots__ = ("_pool",)

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        self = super().__new__(cls)
        _core.PoolScope.__init__(self)  # here: a subclass may forget it
        return self

    def __init__(self, pool: MemoryPool) -> None:
        self._pool = require_pool(pool, "use_pool")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} is neither copied nor pickled: it stands for stays in a pool of this process. "
            "Write use_pool(pool) where one is wanted."
        )

    # The compiled part calls these two, and then enters the entry, or has left it. Interrupts can strike in here alone.

    def _open(self) -> Entry:
        pool: MemoryPool | None = getattr(self, "_pool", None)
        if pool is None:
            raise ConfigError(f"{type(self).__name__} has no pool: its __init__ has to call super().__init__(pool).")
        entry = Entry(pool)
        entry.block = _block_of(sys._getframe(1))
        loop = asyncio._get_running_loop()
        entry.place.task = _running_task()
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

    def _pick(self, entries: tuple[Entry, ...]) -> Entry:
        """Which of them ends here: one object may be entered by several threads and tasks, and nested."""
        block = _block_of(sys._getframe(1))
        task = _running_task()
        places = context.get()

        def likeness(entry: Entry) -> tuple[bool, ...]:
            place = entry.place
            is_own = place.task is task
            is_of_another = not is_own and isinstance(place.task, asyncio.Future) and not place.task.done()
            return (
                entry.block == block,  # the very `with` statement, on whatever thread or in whatever task it goes on
                is_own and place in places,
                is_own and entry.is_here,
                entry.is_here and not is_of_another,
                not is_of_another,
                entry.is_here,
            )

        return max(reversed(entries), key=likeness)  # of those alike the last

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


def _block_of(frame: types.FrameType) -> tuple[types.CodeType, int]:
    """Tells blocks apart while they are open, and keeps no frame: a frame keeps those that called it."""
    return frame.f_code, id(frame)


def _running_task() -> asyncio.Task[Any] | None:
    loop = asyncio._get_running_loop()
    return None if loop is None else asyncio.current_task(loop)


def require_pool(pool: MemoryPool, what: str) -> MemoryPool:
    if not isinstance(pool, MemoryPool):
        raise ConfigError(f"{what} wants a MemoryPool, not {pool!r}.")
    return pool


def _watch(entry: Entry, loop: asyncio.AbstractEventLoop) -> None:
    """Ends the entry once its task is suspended: when mempool sees that, or soon after."""
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


def end_those_of_others() -> None:
    """Ends the watched entries of this thread that are not of the task that runs, if a loop runs."""
    if local.watched and asyncio._get_running_loop() is not None:
        end_suspended(_running_task())


def _report_suspended(entry: Entry, exc: BaseException | None) -> None:
    message = (
        f"a plain `with use_pool({entry.pool.name!r})` was open across an await: other tasks ran in between. "
        "Use `await mempool.in_pool(pool, coroutine)` instead, or call mempool.follow_context() before the task begins."
    )
    if exc is None:
        raise RuntimeError(message)
    # The exception that ends the block (a cancellation, say) matters more than this one; it carries the message along.
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
    """The pool that this thread's new blocks are charged to; None for the device itself, and in a pressure callback.

    Args:
        device: None means the pool that was entered last, whichever device it is of.
    """
    end_those_of_others()
    name = None if device is None else allocator(device).name
    for entry in reversed(_core.pool_entries()):
        if entry is None:
            return None
        if name is None or entry.pool.device == name:
            pool: MemoryPool = entry.pool
            return pool
    return None


def leave_pools() -> int:
    """Takes this thread out of every pool that it is in.

    For use after an interrupt, and for a worker thread that was left in a pool. Open ``with use_pool`` blocks stay
    open, and end without an error.

    Returns:
        The number of pools that were left.
    """
    left = _core.leave_pools()
    context.set(())
    local.watched.clear()
    return left


def forget(entry: Entry) -> None:
    """Removes the stay from this context, if it is there, and stays that ended elsewhere."""
    places = context.get()
    if places and places[-1] is entry.place:
        context.set(places[:-1])
    elif places:
        context.set(tuple(place for place in places if place is not entry.place and place.entry is not None))


def run_step(
    entries: tuple[Entry, ...], function: Callable[..., T], *args: Any, follows: bool, place: Place | None = None
) -> T:
    """A step of a coroutine, or a call: ``function(*args)`` with pools set, and the place in the context.

    Everything that is opened in it is taken off at its end; what `follows` goes on in the next, without a word. Setting
    and taking off are one call of the compiled part together with the step: no interrupt can fall between.
    """
    end_those_of_others()
    following = (asyncio._get_running_loop(),) if follows else None
    try:
        result: T = _core.call_in_pools(entries, following, context, place, function, args)
        return result
    except BaseException as error:
        chain_callback_error(error)
        raise
