"""Pools: accounts with a limit and statistics over the memory of a device."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, NoReturn

from mempool import _core
from mempool._device import KINDS, Device, Size, allocator, optional_size, require_enabled, whole_bytes
from mempool._device_kind import reserve_of, take_reserve
from mempool.errors import ConfigError, OutOfMemoryError


class MemoryPool:
    """An account over the memory of a device, with a limit and statistics of its own.

    A pool bounds the *allocated* bytes of the blocks that are charged to it and to its children: a request pool within
    a model pool within the device. It shares its parent's memory, so thousands of pools cost thousands of counters;
    with ``isolated=True`` it has segments of its own, which go back to the system when the pool is closed and empty,
    and it can :meth:`sleep`.

    Args:
        name: shown in errors, snapshots and statistics; need not be unique.
        device: ``"cpu"``, ``"cuda:1"``, ``"cuda"`` (torch's current one) or ``"pinned"``; None for the only one
            that is enabled.
        limit: most bytes of live blocks, rounded up as for :func:`memory_allocated`; None for no limit.
        soft_limit: bytes; above them the pressure callbacks run, but nothing is refused. None for none.
        parent: a pool whose limit and statistics include this one's.
        isolated: take memory that no other pool shares.
        metrics_label: under which :func:`mempool.observe.prometheus_collector` shows the pool; for a kind of pools,
            as the process may have 64 of them. None for the parent's, which is ``"other"`` where none was given.

    It may be made before ``enable()``; entering it may not. A copy of a pool, also one that ``copy.deepcopy`` of a
    module makes, is the pool itself, and it cannot be pickled: it belongs to its process.

    Raises:
        ConfigError: a size that does not parse, a name or a label that is not text or too long, a label too many, a
            parent of another device.
        PoolClosedError: the parent is closed.
    """

    __slots__ = ("__weakref__", "_device", "_handle", "_parent")

    def __init__(
        self,
        name: str,
        device: Device = "cpu",
        limit: Size | None = None,
        soft_limit: Size | None = None,
        parent: MemoryPool | None = None,
        isolated: bool = False,
        metrics_label: str | None = None,
    ) -> None:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ConfigError(f"a pool's name must be printable text that is not empty, not {name!r}.")
        if parent is not None and not isinstance(parent, MemoryPool):
            raise ConfigError(f"parent must be a MemoryPool, not {parent!r}.")
        if not isinstance(isolated, bool):
            raise ConfigError(f"isolated is True or False, not {isolated!r}.")
        label = "" if metrics_label is None else _checked_label(metrics_label)
        self._device = allocator(device)
        if parent is not None and parent.device != self.device:
            raise ConfigError(f"a pool of {self.device} cannot have a parent of {parent.device}.")
        self._parent = parent
        self._handle: _core.Pool = self._device.open_pool(
            name,
            parent._handle if parent is not None else None,
            isolated,
            optional_size(limit, "limit", self._device),
            optional_size(soft_limit, "soft_limit", self._device),
            label,
        )

    def _open_child(self, name: str, limit: int | None) -> MemoryPool:
        """A child for one request, of arguments that were checked. It shares the memory of this pool."""
        child = MemoryPool.__new__(MemoryPool)
        child._device = self._device
        child._parent = self
        child._handle = self._device.open_pool(name, self._handle, False, limit, None, "", True)
        return child

    @property
    def name(self) -> str:
        """The name that it was given."""
        return self._handle.name

    @property
    def device(self) -> str:
        """``"cpu"``, ``"cuda:N"`` or ``"pinned"``."""
        return self._device.name

    @property
    def parent(self) -> MemoryPool | None:
        """The pool whose limit and statistics include this one's; None for the device itself."""
        return self._parent

    @property
    def isolated(self) -> bool:
        """Whether it has segments of its own."""
        return self._handle.isolated

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._handle.closed

    def used_bytes(self) -> int:
        """Bytes of live blocks charged to this pool and its children. Exact at every moment."""
        return self._handle.stats()["allocated_bytes.current"]

    def peak_bytes(self) -> int:
        """The peak of :meth:`used_bytes` since the start or :meth:`reset_peak`. Exact under any number of threads."""
        return self._handle.stats()["allocated_bytes.peak"]

    def total_bytes(self) -> int:
        """Bytes of physical memory: what the segments of an isolated pool hold, else :meth:`used_bytes`."""
        return self._handle.held_bytes()

    def stats(self) -> dict[str, int]:
        """Counters of this pool and its children.

        Keys: ``{allocation, allocated_bytes, requested_bytes}.{current, peak, allocated, freed}`` (``allocation`` in
        blocks; ``allocated`` and ``freed`` are sums), ``num_ooms`` and ``num_pressure_calls``.
        """
        return self._handle.stats()

    def reset_peak(self) -> None:
        """Sets the peaks to the current values."""
        self._handle.reset_peaks()

    def set_limit(self, limit: Size | None, *, soft: bool = False) -> None:
        """Changes the limit, or with ``soft`` the soft limit; None removes it.

        Raises:
            ConfigError: the size does not parse, or more is in use than the limit allows; the limit is then unchanged.
        """
        value = optional_size(limit, "limit", self._device)
        if soft:
            self._handle.soft_limit = value
        else:
            self._handle.limit = value

    def get_limit(self, *, soft: bool = False) -> int | None:
        """The limit in bytes, or with ``soft`` the soft limit; None when there is none."""
        return self._handle.soft_limit if soft else self._handle.limit

    @property
    def limit(self) -> int | None:
        """:meth:`get_limit`, and assigned :meth:`set_limit`."""
        return self.get_limit()

    @limit.setter
    def limit(self, limit: Size | None) -> None:
        self.set_limit(limit)

    @property
    def soft_limit(self) -> int | None:
        """:meth:`get_limit` and :meth:`set_limit` with ``soft=True``."""
        return self.get_limit(soft=True)

    @soft_limit.setter
    def soft_limit(self, limit: Size | None) -> None:
        self.set_limit(limit, soft=True)

    def trim(self) -> int:
        """Gives free memory back to the system: an isolated pool's own, else that which it shares with other pools.

        Returns:
            The bytes given back.
        """
        return self._handle.trim()

    def reserve(self, reserve: Size) -> None:
        """Holds at least so many bytes for an isolated pool from now on: see :func:`mempool.reserve`.

        They end with the pool. A pool that sleeps gives them up until it wakes.

        Args:
            reserve: bytes, or a size as text; 0 ends the reservation.

        Raises:
            ConfigError: the pool is not isolated, or the size does not parse.
            OutOfMemoryError: a limit or the system refuses it; nothing is changed.
            PoolClosedError, PoolAsleepError: the pool is closed, or asleep.
        """
        take_reserve(self._handle, reserve_of(reserve, lambda: whole_bytes(self._device)))

    @property
    def reserved_bytes(self) -> int:
        """What :meth:`reserve` keeps for the pool; 0 for none."""
        return self._handle.reserved_bytes

    @property
    def asleep(self) -> bool:
        """Whether it sleeps: see :meth:`sleep`."""
        return self._handle.asleep

    def sleep(self, *, keep: bool = True) -> None:
        """Gives the memory of an isolated pool back and keeps the addresses of its tensors.

        Until :meth:`wake` the pool takes no new blocks, and an access to one of its tensors is a segmentation fault: it
        never reads zeros. Freeing them is allowed. Has no effect on a pool that is asleep.

        Args:
            keep: save the contents and read them back at wake. They take as much room as the live blocks: on the CPU in
                a file without a name, in ``TMPDIR``, else ``/tmp``; on CUDA in pinned host memory. False drops them:
                after wake they are undefined.

        Raises:
            ConfigError: the pool is not isolated.
            NotEnabledError: mempool is not enabled for its device, so that its tensors may lie elsewhere.
            PoolStateError: the contents could not be saved, or the system kept the memory; the pool is awake, unless
                the message says that it sleeps. With ``keep=False`` some contents may be gone even so.
        """
        if not isinstance(keep, bool):
            raise ConfigError(f"keep is True or False, not {keep!r}.")
        require_enabled(self.device, f"pool '{self.name}' cannot sleep")
        self._handle.sleep(keep)

    def wake(self) -> None:
        """Takes memory for the pool again, at the same addresses. Has no effect on a pool that is awake.

        Raises:
            OutOfMemoryError: a limit or the system refuses it; the pool stays asleep and keeps its contents.
            PoolStateError: its contents could not be read back; the pool stays asleep, and waking may be tried again.
        """
        try:
            self._handle.wake()
        except MemoryError as error:
            raise OutOfMemoryError(str(error)) from error

    def close(self) -> None:
        """Takes no new blocks from now on. Has no effect on a pool that is closed.

        Live tensors stay valid. A block's memory is free again when its last tensor dies; an isolated pool's memory
        goes back to the system with its last block. A later allocation in the pool is refused with PoolClosedError,
        inside a torch operation with a RuntimeError (torch keeps no other type).
        """
        self._handle.close()

    def __copy__(self) -> MemoryPool:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryPool:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"pool {self.name!r} cannot be pickled: it is an account of this process. Make one in each process, of the "
            "same name and limit, and leave it out of what is sent."
        )

    def __repr__(self) -> str:
        limit = self.get_limit()
        states = {"isolated": self.isolated, "asleep": self.asleep, "closed": self.closed}
        return (
            f"MemoryPool({self.name!r}, device={self.device!r}, used={_core.format_bytes(self.used_bytes())}, "
            f"limit={'none' if limit is None else _core.format_bytes(limit)}"
            f"{''.join(f', {state}' for state, holds in states.items() if holds)})"
        )


def _checked_label(label: str) -> str:
    most = _core.longest_metrics_label
    if not isinstance(label, str) or not label or not label.isprintable() or len(label.encode()) > most:
        raise ConfigError(f"metrics_label must be printable text of 1 to {most} bytes, not {label!r}.")
    return label


@dataclass(frozen=True)
class PoolInfo:
    """What :func:`list_pools` says of a pool, in bytes."""

    name: str
    device: str
    parent: str | None  # the parent's name
    used_bytes: int  # of live blocks, its children's included
    peak_bytes: int  # of used_bytes
    limit: int | None
    soft_limit: int | None
    isolated: bool  # it has segments of its own
    closed: bool  # it takes no new blocks (it was closed, or its MemoryPool is gone), and some are alive


def list_pools(device: Device = None) -> list[PoolInfo]:
    """All pools, those included whose MemoryPool is gone while some of their blocks are alive.

    Parents come before their children. Each pool's figures are exact; two pools are not read at the same moment.

    Args:
        device: None for all devices.
    """
    made = (each for kind in KINDS.values() for each in kind.made())
    return [info for each in (made if device is None else [allocator(device)]) for info in _pools_of(each)]


def _pools_of(device: _core.Device) -> list[PoolInfo]:
    rows = {row[0]: row for row in device.pools()}
    children: dict[int, list[int]] = {}
    for account, row in rows.items():
        # Between two rows a parent may have gone.
        children.setdefault(row[1] if row[1] in rows else 0, []).append(account)
    infos = []
    waiting = deque(children.get(0, []))
    while waiting:
        account = waiting.popleft()
        waiting.extend(children.get(account, []))
        _, parent, name, isolated, closed, used, peak, limit, soft = rows[account]
        above = rows[parent][2] if parent in rows else None
        infos.append(PoolInfo(name, device.name, above, used, peak, limit, soft, isolated, closed))
    return infos
