"""A snapshot of the moment at which a request was refused, written to a file while the program goes on."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mempool import _core
from mempool._device import Size, allocator, size
from mempool._files import atomic_write
from mempool.errors import ConfigError
from mempool.observe.snapshot import read_snapshot

VARIABLE = "MEMPOOL_CAPTURE_ON_OOM"

_log = logging.getLogger("mempool")
_PREFIX, _SUFFIX = "oom-", ".pickle"
_SHOWN_POOLS = 3
_MOST_KEYS = 1024  # labels and reasons whose last capture is remembered
_numbers = itertools.count(1)  # of this process's files
_lock = threading.Lock()
_captures: list[CaptureHandle] = []


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    for each in _captures:
        each._state.is_writing = False


os.register_at_fork(after_in_child=_after_fork_in_child)


class _TooLarge(Exception):
    """A snapshot that has more bytes than may be written."""


@dataclass
class _State:
    last: dict[tuple[str, str, str], float] = field(default_factory=dict)  # when, by device, label and reason
    is_writing: bool = False


class CaptureHandle:
    """What :func:`capture_on_oom` returns. ``remove()``, or the end of a ``with`` block, ends it."""

    __slots__ = ("_interval_s", "_most_bytes", "_most_files", "_request_pools", "_state", "folder")

    def __init__(self, folder: Path, interval_s: float, most_files: int, most_bytes: int, request_pools: bool) -> None:
        self.folder = folder
        self._interval_s = interval_s
        self._most_files = most_files
        self._most_bytes = most_bytes
        self._request_pools = request_pools
        self._state = _State()

    def remove(self) -> None:
        """No refusal is captured from now on; a file that is being written is completed. No effect the second time."""
        with _lock:
            if self in _captures:
                _captures.remove(self)
            if not _captures:
                _core.set_refusal_handler(None)

    def __enter__(self) -> CaptureHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _begin(self, key: tuple[str, str, str], is_of_request: bool) -> Path | None:
        """The file for a refusal that is to be captured; None for others. Expects the lock."""
        state, now = self._state, time.monotonic()
        if state.is_writing or (is_of_request and key[2] == "pool_limit" and not self._request_pools):
            return None
        if now - state.last.get(key, float("-inf")) < self._interval_s:
            return None
        while len(state.last) >= _MOST_KEYS:
            del state.last[next(iter(state.last))]
        state.last.pop(key, None)
        state.last[key] = now
        state.is_writing = True
        device, label, reason = (re.sub(r"[^\w.-]+", "_", part) or "none" for part in key)
        when = time.strftime("%Y%m%dT%H%M%S")
        name = f"{_PREFIX}{when}-{os.getpid()}-{next(_numbers)}-{device}-{label}-{reason}{_SUFFIX}"
        return self.folder / name

    def _write(self, taken: _core.TakenSnapshot, device: str, path: Path, facts: dict[str, Any]) -> None:
        try:
            snapshot = read_snapshot(taken, allocator(device))
            snapshot["oom"] = facts
            with atomic_write(path) as file:
                pickle.dump(snapshot, _Bounded(file, self._most_bytes), protocol=4)
            self._make_room()
        except _TooLarge:
            _log.warning("%s was not written: it would have more than %d bytes", path, self._most_bytes)
        except Exception as error:  # of the file system, or for want of memory: the program goes on without
            _log.warning("%s was not written: %s", path, error)
        finally:
            self._state.is_writing = False

    def _make_room(self) -> None:
        """Removes the oldest captures of the folder until what is left is within the bounds."""
        found = []
        for path in self.folder.glob(f"{_PREFIX}*{_SUFFIX}"):
            try:
                status = path.stat()
            except OSError:  # another process has removed it
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        found.sort(reverse=True)
        total = 0
        for i, (_, nbytes, path) in enumerate(found):
            total += nbytes
            if i >= self._most_files or total > self._most_bytes:
                path.unlink(missing_ok=True)


class _Bounded:
    """Writes at most so many bytes."""

    def __init__(self, file: Any, most: int) -> None:
        self._file = file
        self._left = most

    def write(self, data: Any) -> int:
        nbytes = memoryview(data).nbytes
        self._left -= nbytes
        if self._left < 0:
            raise _TooLarge
        self._file.write(data)
        return nbytes


def capture_on_oom(
    folder: str | os.PathLike[str],
    *,
    interval_s: float = 60,
    most_files: int = 16,
    most_bytes: Size = "1GiB",
    request_pools: bool = False,
) -> CaptureHandle:
    """Writes a snapshot of the moment at which an allocation is refused, and has its error name the file.

    The heap is copied on the thread that is refused, which takes milliseconds; another thread writes it, and a program
    that ends waits for that. The file is a snapshot as :func:`mempool.dump_snapshot` writes it, with the facts of the
    refusal under ``"oom"``; ``mempool stats`` reads it. The error's message also says which pools are the largest and
    how much of what is held is free, and ``oom_info(exc)["capture"]`` is the file.

    With :func:`mempool.record_history` on, the file has the stacks of live blocks. The environment variable
    ``MEMPOOL_CAPTURE_ON_OOM=folder`` is the same in each process that imports mempool.

    Args:
        folder: it is made where it is not there. Processes may share it.
        interval_s: seconds in which a refusal of the same device, metrics label and reason is not captured again.
        most_files: kept in the folder; the oldest go first.
        most_bytes: likewise of all of them together. A snapshot that is larger is not kept.
        request_pools: capture also where the own limit of a request's pool (:mod:`mempool.serving`) refuses, which
            clients can cause at will.

    Returns:
        A handle; its ``remove()`` ends it.

    Raises:
        ConfigError: a bound that is none.
        OSError: the folder cannot be made or written to.
    """
    if isinstance(interval_s, bool) or not isinstance(interval_s, (int, float)) or not interval_s >= 0:
        raise ConfigError(f"interval_s is a number of seconds, not {interval_s!r}.")
    if isinstance(most_files, bool) or not isinstance(most_files, int) or most_files < 1:
        raise ConfigError(f"most_files is a number of files of at least 1, not {most_files!r}.")
    path = Path(folder).absolute()
    handle = CaptureHandle(path, interval_s, most_files, size(most_bytes, "most_bytes"), request_pools)
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(13, "capture_on_oom cannot write to it", str(path))
    with _lock:
        _captures.append(handle)
        _core.set_refusal_handler(_refused)
    return handle


def _refused(device: str, reason: str, pool: str, label: str, is_of_request: bool, requested: int) -> tuple[str, str]:
    """Runs on the thread that is refused. Returns what its error says of it, and the file."""
    key = (device, label, reason)
    # Once the interpreter shuts down no thread is waited for. A signal handler or a finalizer may run while this thread
    # holds the lock.
    if not threading.main_thread().is_alive() or not _lock.acquire(blocking=False):
        return "", ""
    try:
        begun = [(each, path) for each in _captures if (path := each._begin(key, is_of_request)) is not None]
    finally:
        _lock.release()
    if not begun:
        return "", ""
    try:
        taken = _core.take_snapshot(allocator(device))
        facts = {"device": device, "reason": reason, "pool": pool, "requested": requested, "time": time.time()}
        for each, path in begun:
            threading.Thread(target=each._write, args=(taken, device, path, facts), name="mempool-capture").start()
    except BaseException:
        for each, _ in begun:
            each._state.is_writing = False
        raise
    return _help(taken, reason), str(begun[0][1])


def _help(taken: _core.TakenSnapshot, reason: str) -> str:
    live, held, in_free_ranges, pools = taken.summary(_SHOWN_POOLS)
    shown = ", ".join(f"'{name}' {_core.format_bytes(nbytes)}" for name, nbytes in pools)
    text = f"Largest pools, by their own blocks: {shown or 'none'}."
    if reason == "pool_limit":
        return f"{text} trim() and defragment() do not help: the limit is of live blocks."
    free = max(held - live, 0)
    return (
        f"{text} {_core.format_bytes(free)} of what is held is free, of which trim() could give back at most "
        f"{_core.format_bytes(min(in_free_ranges, free))}."
    )


def start_as_asked(folder: str) -> None:
    """For MEMPOOL_CAPTURE_ON_OOM: what is wrong with it is a warning."""
    import warnings

    try:
        capture_on_oom(folder)
    except OSError as error:
        warnings.warn(f"{VARIABLE}={folder}: {error}", stacklevel=2)
