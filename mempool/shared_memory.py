"""What each process of a shared ledger holds."""

from __future__ import annotations

from dataclasses import dataclass

from mempool import _core
from mempool._device import Device, allocator


@dataclass(frozen=True)
class ProcessMemory:
    """What one process holds of a device; bytes."""

    pid: int
    name: str
    is_alive: bool
    held: int  # 0 once it has ended
    peak_held: int


@dataclass(frozen=True)
class SharedMemoryReport:
    """What all processes of a ledger hold of a device; bytes."""

    limit: int | None
    held: int
    peak_held: int  # the most that they held at one moment: not the sum of their peaks
    # Those that have held any. Of one that has ended the figures stay until its place is needed: a ledger has 256.
    processes: tuple[ProcessMemory, ...]


def shared_report(device: Device = None) -> SharedMemoryReport:
    """What the processes that share a limit hold of a device, each of them and all together.

    Raises:
        ConfigError: unknown device, or the device is in no ledger: ``enable(..., shared=True)`` joins one.
    """
    return _reports()[_core.shared_number(allocator(device))][1]


def reports_by_key() -> dict[str, SharedMemoryReport]:
    """One for each device that any process of the ledger has used: ``"cpu"``, ``"cuda-UUID"``. Empty without one."""
    return dict(_reports())


def _reports() -> list[tuple[str, SharedMemoryReport]]:
    out = []
    for key, limit, held, peak, processes in _core.shared_figures():
        rows = (ProcessMemory(*row) for row in processes)
        out.append((key, SharedMemoryReport(limit, held, peak, tuple(row for row in rows if row.peak_held > 0))))
    return out
