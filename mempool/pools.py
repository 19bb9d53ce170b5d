"""Pools: accounts with a limit and statistics, and the ways to charge new blocks to one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from mempool import _core
from mempool._device import Device, Size, allocator, optional_size, whole_bytes
from mempool.errors import ConfigError, OutOfMemoryError, PoolClosedError
from mempool.pressure import chain_callback_error

P = ParamSpec("P")
T = TypeVar("T")


class MemoryPool:
    """An account over the memory of a device, with a limit and statistics of its own.

    A pool bounds the *allocated* bytes of the blocks that are charged to it and to its children: a request pool within
    a model pool within the device. It shares its parent's memory, so thousands of pools cost thousands of counters;
    with ``isolated=True`` it has segments of its own, which go back to the system when the pool is closed and empty.

    Args:
        name: shown in errors, snapshots and statistics; need not be unique.
        device: ``"cpu"``, ``"cuda:1"``, ``"cuda"`` (torch's current one); None for the only one that is enabled.
        limit: most bytes of live blocks (rounded as the README says); None for no limit.
        soft_limit: above it the pressure callbacks run, but nothing is refused; None for none.
        parent: a pool whose limit and statistics include this one's.
        isolated: take memory that no other pool shares.

    Raises:
        ConfigError: a size that does not parse, a name that is not text, a parent of another device.
        PoolClosedError: the parent is closed.
    """

    def __init__(
        self,
        name: str,
        device: Device = "cpu",
        limit: Size | None = None,
        soft_limit: Size | None = None,
        parent: MemoryPool | None = None,
        isolated: bool = False,
    ) -> None:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ConfigError(f"a pool's name must be printable text that is not empty, not {name!r}.")
        if parent is not None and not isinstance(parent, MemoryPool):
            raise ConfigError(f"parent must be a MemoryPool, not {parent!r}.")
        self._device = allocator(device)
        if parent is not None and parent.device != self.device:
            raise ConfigError(f"a pool of {self.device} cannot have a parent of {parent.device}.")
        self._parent = parent
        self._handle: _core.Pool = self._device.open_pool(
            name,
            parent._handle if parent is not None else None,
            isolated,
            optional_size(limit, "limit", whole_bytes(self._device)),
            optional_size(soft_limit, "soft_limit", whole_bytes(self._device)),
        )

    @property
    def name(self) -> str:
        return self._handle.name

    @property
    def device(self) -> str:
        return self._device.name

    @property
    def parent(self) -> MemoryPool | None:
        return self._parent

    @property
    def isolated(self) -> bool:
        return self._handle.isolated

    @property
    def closed(self) -> bool:
        return self._handle.closed

    def used_bytes(self) -> int:
        """Bytes of live blocks charged to this pool and its children. Exact at every moment."""
        return self._handle.stats()["allocated_bytes.current"]

    def peak_bytes(self) -> int:
        """Most :meth:`used_bytes` ever was, or since :meth:`reset_peak`. Exact, also with many threads."""
        return self._handle.stats()["allocated_bytes.peak"]

    def total_bytes(self) -> int:
        """Bytes of physical memory: of an isolated pool what its own segments hold, else :meth:`used_bytes`."""
        return self._handle.held_bytes()

    def stats(self) -> dict[str, int]:
        """Counters: ``{allocation, allocated_bytes, requested_bytes}.{current, peak, allocated, freed}``, ``num_ooms``
        and ``num_pressure_calls``."""
        return self._handle.stats()

    def reset_peak(self) -> None:
        """Sets the peaks to the current values."""
        self._handle.reset_peaks()

    def set_limit(self, limit: Size | None, *, soft: bool = False) -> None:
        """Changes the limit; None removes it. Raises ConfigError, changing nothing, when more than that is in use."""
        value = optional_size(limit, "limit", whole_bytes(self._device))
        if soft:
            self._handle.soft_limit = value
        else:
            self._handle.limit = value

    def get_limit(self, *, soft: bool = False) -> int | None:
        """The limit in bytes, None when there is none."""
        return self._handle.soft_limit if soft else self._handle.limit

    def trim(self) -> int:
        """Gives free memory of the arena that this pool uses back to the system. Returns the bytes given back."""
        return self._handle.trim()

    @property
    def asleep(self) -> bool:
        return self._handle.asleep

    def sleep(self, *, keep: bool = True) -> None:
        """Gives the memory of an isolated pool back and keeps the addresses of its tensors.

        Until :meth:`wake` the pool takes no new blocks, and an access to one of its tensors is a segmentation fault: it
        never reads zeros. Freeing them is fine. Without an effect on a pool that is asleep.

        Args:
            keep: save the contents (CPU: in a file without a name, in ``TMPDIR``, else ``/tmp``; CUDA: in pinned host
                memory; it needs as much room as the live blocks) and read them back at wake. False
                drops them: after wake they read as anything.

        Raises:
            ConfigError: the pool is not isolated.
            PoolStateError: the contents could not be saved, or the system kept the memory; the pool is awake. With
                ``keep=False`` some contents may be gone even so.
        """
        self._handle.sleep(keep)

    def wake(self) -> None:
        """Takes memory for the pool again, at the same addresses. Without an effect on a pool that is awake.

        Raises:
            OutOfMemoryError: the limits or the system refuse it; the pool sleeps on and is whole.
        """
        try:
            self._handle.wake()
        except MemoryError as error:
            raise OutOfMemoryError(str(error)) from error

    def close(self) -> None:
        """Takes no new blocks from now on.

        Inside a torch operation the refusal is a RuntimeError (torch keeps no other type); everything else raises
        PoolClosedError. Tensors that are alive stay valid. The memory of a block goes back when its last tensor dies,
        and the pool's record (and, of an isolated pool, its segments) with the last block. Closing again has no effect.
        """
        self._handle.close()

    def __repr__(self) -> str:
        limit = self.get_limit()
        states = {"isolated": self.isolated, "asleep": self.asleep, "closed": self.closed}
        return (
            f"MemoryPool({self.name!r}, device={self.device!r}, used={_core.format_bytes(self.used_bytes())}, "
            f"limit={'none' if limit is None else _core.format_bytes(limit)}"
            f"{''.join(f', {state}' for state, holds in states.items() if holds)})"
        )


class _Entry:
    """One ``with use_pool`` that is open on a thread."""

    __slots__ = ("pool", "suspended", "watch")

    def __init__(self, pool: MemoryPool) -> None:
        self.pool = pool
        self.suspended = False  # other code of this thread ran in between: the entry was taken off the stack
        self.watch: asyncio.Handle | None = None


class _Stack(threading.local):
    def __init__(self) -> None:
        self.entries: list[_Entry] = []


_stack = _Stack()


def _push(entry: _Entry) -> None:
    if entry.pool.closed:
        raise PoolClosedError(f"pool '{entry.pool.name}' is closed: it takes no new blocks.")
    _stack.entries.append(entry)
    try:
        entry.pool._device.set_current_pool(entry.pool._handle)
    except BaseException:  # an interrupt, say: nothing may stay half entered
        _drop(entry)
        raise


def _drop(entry: _Entry) -> None:
    """Takes the entry off this thread's stack; without an effect when it is not there."""
    entries = _stack.entries
    if entry in entries:
        entries.remove(entry)
    _apply_top(entry.pool._device)


def _apply_top(device: _core.Device) -> None:
    # Also when the outer pool was closed meanwhile: then new blocks are refused, not charged to somebody else.
    name = device.name
    entries = [entry for entry in _stack.entries if entry.pool.device == name]
    device.set_current_pool(entries[-1].pool._handle if entries else None)


class use_pool:
    """``with use_pool(pool):`` charges the new blocks of this thread to ``pool``. Nests; workers do not inherit it.

    A ``with`` that stays open while a coroutine is suspended would charge other tasks' blocks to the pool. On asyncio
    that is found out, ended as soon as the loop runs, and raised as RuntimeError at the end of the block (or noted on
    the exception that ends it): use :func:`in_pool` there. A generator that yields inside the block leaves the pool set
    for whoever consumes it, as with ``torch.no_grad()``.

    Raises:
        PoolClosedError: on entry, when the pool is closed.
        RuntimeError: on exit, when the block was open across an ``await``.
    """

    def __init__(self, pool: MemoryPool) -> None:
        if not isinstance(pool, MemoryPool):
            raise ConfigError(f"use_pool wants a MemoryPool, not {pool!r}.")
        self._pool = pool
        self._open: dict[int, list[_Entry]] = {}  # by thread: one object may be entered by several, and nested

    def __enter__(self) -> MemoryPool:
        entry = _Entry(self._pool)
        opened = self._open.setdefault(threading.get_ident(), [])
        _push(entry)
        opened.append(entry)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return self._pool
        # Runs only if control returns to the loop, and then before the suspended task goes on.
        entry.watch = loop.call_soon(_end_suspended, entry)
        return self._pool

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        thread = threading.get_ident()
        opened = self._open.get(thread)
        if not opened:
            raise RuntimeError(
                f"`with use_pool({self._pool.name!r})` was entered on another thread: a suspended generator or "
                "coroutine went on elsewhere. Use mempool.in_pool for coroutines."
            )
        entry = opened.pop()
        try:
            if not opened:
                del self._open[thread]
            if entry.watch is not None:
                entry.watch.cancel()
            chain_callback_error(exc)
        finally:
            _drop(entry)
        if entry.suspended:
            _report_suspended(entry, exc)


def _report_suspended(entry: _Entry, exc: BaseException | None) -> None:
    message = (
        f"a plain `with use_pool({entry.pool.name!r})` was open across an await: other tasks ran in between. "
        "Use `await mempool.in_pool(pool, coroutine)` instead."
    )
    if exc is None:
        raise RuntimeError(message)
    # What ends the block (a cancellation, say) is worth more than this; it carries the message along.
    if hasattr(exc, "add_note"):  # Python 3.11
        exc.add_note(message)


def _end_suspended(entry: _Entry) -> None:
    entry.suspended = True
    if entry in _stack.entries:
        _stack.entries.remove(entry)
        _apply_top(entry.pool._device)


def current_pool(device: Device = None) -> MemoryPool | None:
    """The pool that this thread's new blocks of a device are charged to; None for the device itself.

    With ``device=None`` the pool that was entered last, whichever device it is of.
    """
    name = None if device is None else allocator(device).name
    entries = [entry for entry in _stack.entries if name is None or entry.pool.device == name]
    return entries[-1].pool if entries else None


class _Step:
    """One resume of a coroutine: a use_pool that need not watch the event loop."""

    __slots__ = ("_entry",)

    def __init__(self, pool: MemoryPool) -> None:
        self._entry = _Entry(pool)

    def __enter__(self) -> None:
        _push(self._entry)

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        chain_callback_error(exc)
        # What the coroutine opened and not closed is suspended with it.
        entries = _stack.entries
        if self._entry in entries:
            for above in entries[entries.index(self._entry) + 1 :]:
                above.suspended = True
                entries.remove(above)
        _drop(self._entry)


@types.coroutine
def _drive(pool: MemoryPool, inner: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Resumes ``inner`` with the pool set around each step and nothing set in between."""
    value: Any = None
    error: BaseException | None = None
    told = False
    while True:
        if pool.closed and not told:
            # The coroutine learns of it where it waits and may clean up, in no pool. What else was to be thrown into it
            # (a cancellation) comes first.
            told = True
            if error is None:
                error = PoolClosedError(f"pool '{pool.name}' was closed: it takes no new blocks.")
        with contextlib.nullcontext() if told else _Step(pool):
            try:
                yielded = inner.send(value) if error is None else inner.throw(error)
            except StopIteration as stop:
                result: T = stop.value
                return result
        value, error = None, None
        try:
            value = yield yielded
        except BaseException as thrown:
            error = thrown


async def in_pool(pool: MemoryPool, awaitable: Awaitable[T]) -> T:
    """Awaits ``awaitable`` with the blocks that it makes charged to ``pool``, in whatever order tasks run.

    The pool is set around every resume of the coroutine, and unset while it is suspended, so tasks under
    ``asyncio.gather`` each keep to their own. A task that the coroutine *starts* does not inherit the pool.

    Raises:
        PoolClosedError: the pool is closed at the start, or was closed meanwhile; it is raised inside the coroutine,
            where it waits.
    """
    if not isinstance(pool, MemoryPool):
        raise ConfigError(f"in_pool wants a MemoryPool, not {pool!r}.")
    return await _drive(pool, awaitable if isinstance(awaitable, Coroutine) else _wait_for(awaitable))


async def _wait_for(awaitable: Awaitable[T]) -> T:
    return await awaitable


def bind(pool: MemoryPool, function: Callable[P, T]) -> Callable[P, T]:
    """``function`` with its blocks charged to ``pool``, for executors and callbacks that run on other threads.

    Of a coroutine function the coroutines run :func:`in_pool`.

    Raises:
        ConfigError: a generator function: its body would run outside of the call.
    """
    if not isinstance(pool, MemoryPool):
        raise ConfigError(f"bind wants a MemoryPool, not {pool!r}.")
    call = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    if any(inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in (function, call)):
        raise ConfigError(f"bind cannot charge the blocks of a generator: {function!r}. Bind what consumes it.")
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):

        @functools.wraps(function)
        async def bound_coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
            coroutine: Any = function(*args, **kwargs)
            return await in_pool(pool, coroutine)

        return bound_coroutine  # type: ignore[return-value]

    @functools.wraps(function)
    def bound(*args: P.args, **kwargs: P.kwargs) -> T:
        with use_pool(pool):
            return function(*args, **kwargs)

    return bound
