"""Pools: accounts with a limit and statistics over the memory of a device."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from mempool import _core
from mempool._device import Device, Size, allocator, cpu, cuda_if_made, optional_size, require_enabled
from mempool.errors import ConfigError, OutOfMemoryError


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

    It may be made before ``enable()``; entering it may not. A copy of a pool, also one that ``copy.deepcopy`` of a
    module makes, is the pool itself, and it cannot be pickled: it belongs to its process.

    Raises:
        ConfigError: a size that does not parse, a name that is not text, a parent of another device.
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
    ) -> None:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ConfigError(f"a pool's name must be printable text that is not empty, not {name!r}.")
        if parent is not None and not isinstance(parent, MemoryPool):
            raise ConfigError(f"parent must be a MemoryPool, not {parent!r}.")
        if not isinstance(isolated, bool):
            raise ConfigError(f"isolated is True or False, not {isolated!r}.")
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
        value = optional_size(limit, "limit", self._device)
        if soft:
            self._handle.soft_limit = value
        else:
            self._handle.limit = value

    def get_limit(self, *, soft: bool = False) -> int | None:
        """The limit in bytes, None when there is none."""
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
            NotEnabledError: mempool is not enabled for its device, so that its tensors may lie elsewhere.
            PoolStateError: the contents could not be saved, or the system kept the memory; the pool is awake, unless
                the message says that it sleeps. With ``keep=False`` some contents may be gone even so.
        """
        if not isinstance(keep, bool):
            raise ConfigError(f"keep is True or False, not {keep!r}.")
        require_enabled(self.device, f"pool '{self.name}' cannot sleep")
        self._handle.sleep(keep)

    def wake(self) -> None:
        """Takes memory for the pool again, at the same addresses. Without an effect on a pool that is awake.

        Raises:
            OutOfMemoryError: the limits or the system refuse it; the pool sleeps on and is whole.
            PoolStateError: its contents could not be read back; the pool sleeps on, and it may be tried again.
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


@dataclass(frozen=True)
class PoolInfo:
    """What :func:`list_pools` says of a pool, in bytes."""

    name: str
    device: str
    parent: str | None  # the parent's name
    used_bytes: int  # of live blocks, its children's included
    peak_bytes: int
    limit: int | None
    soft_limit: int | None
    isolated: bool
    closed: bool  # it takes no new blocks: closed or forgotten, and some are alive


def list_pools(device: Device = None) -> list[PoolInfo]:
    """The pools that exist, also those whose MemoryPool is gone while blocks of theirs are alive.

    Parents come before their children. Cheap: some microseconds for each pool, and each pool's figures are exact; two
    pools are not read at the same moment.

    Args:
        device: None for all devices.
    """
    if device is not None:
        devices = [allocator(device)]
    else:
        made = (cuda_if_made(index) for index in range(torch.cuda.device_count()))
        devices = [cpu(), *(each for each in made if each is not None)]
    return [info for each in devices for info in _pools_of(each)]


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
