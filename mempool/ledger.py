"""One limit for many processes: the ledger in shared memory that they are in, and what each of them holds."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

from mempool import _core
from mempool._device import Device, Size, allocator
from mempool.errors import ConfigError

LEDGER_VARIABLE = "MEMPOOL_LEDGER"
ENABLE_VARIABLE = "MEMPOOL_ENABLE"


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


def join() -> None:
    """Puts this process into the ledger that MEMPOOL_LEDGER names, or into a new one.

    Raises:
        ConfigError: the name is none, the ledger is full, another user's or another version's, or cannot be made.
        PoolStateError: the process is in another ledger.
    """
    joined = _core.ledger_name()
    name = os.environ.get(LEDGER_VARIABLE) or joined or f"{os.getpid()}-{os.urandom(4).hex()}"
    try:
        _core.join_ledger(name, _process_name())
    except _core.PoolStateError:
        raise
    except RuntimeError as error:  # of the file: whose it is, its version, no room
        raise ConfigError(f"{LEDGER_VARIABLE}={name}: {error}") from error
    if not joined:
        atexit.register(_core.prepare_exit)


def loads_entry_points() -> bool:
    """Whether torch loads its entry points, and with them mempool in processes that are spawned."""
    return os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") != "0"


def tell_children(device: str, limit: Size | None) -> None:
    """Has later processes enable the device in this ledger; a limit takes the place of an earlier one.

    Warns where they will not: torch was told to load no entry points.
    """
    if limit is not None and not loads_entry_points():
        warnings.warn(
            "TORCH_DEVICE_BACKEND_AUTOLOAD=0 is set: processes that are spawned run without the shared limit, unless "
            "they call mempool.enable(..., shared=True) themselves.",
            stacklevel=3,
        )
    if name := _core.ledger_name():
        os.environ[LEDGER_VARIABLE] = name
    asked = [part.strip() for part in os.environ.get(ENABLE_VARIABLE, "").split(",") if part.strip()]
    others = [part for part in asked if part.partition("=")[0].strip() != device]
    if limit is None and others != asked:
        return
    os.environ[ENABLE_VARIABLE] = ",".join([*others, device if limit is None else f"{device}={limit}"])


def _process_name() -> str:
    program = sys.orig_argv[1:] or sys.argv
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] not in ("", "-c", "-m") else Path(program[0]).name
    child = multiprocessing.current_process().name
    text = name if child == "MainProcess" else f"{name} {child}"
    return os.fsencode(text).decode(errors="replace")
