"""One limit for many processes: being in a ledger in shared memory, and having children join it."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import warnings
from pathlib import Path

from mempool import _core
from mempool._device import Size
from mempool.errors import ConfigError

LEDGER_VARIABLE = "MEMPOOL_LEDGER"
ENABLE_VARIABLE = "MEMPOOL_ENABLE"


def join() -> None:
    """Puts this process into the ledger that MEMPOOL_LEDGER names, or into a new one.

    Raises:
        ConfigError: the name is none, the ledger is full, another user's or another version's, or cannot be made.
        PoolStateError: the process is in another ledger.
    """
    joined = _core.ledger_path()
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
    if path := _core.ledger_path():  # not the name: another XDG_RUNTIME_DIR would lead to another ledger
        os.environ[LEDGER_VARIABLE] = path
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
