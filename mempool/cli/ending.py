"""Writes snapshot and summary at the end of ``mempool run``, unless the program is killed or calls ``os._exit``."""

from __future__ import annotations

import _thread
import atexit
import contextlib
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from rich.table import Table

import mempool
from mempool._device import kind_of, parse_device
from mempool._files import atomic_write
from mempool._text import printable, render
from mempool.cli.common import format_size, shown
from mempool.ledger import loads_entry_points
from mempool.shared_memory import SharedMemoryReport, reports_by_key

_STDERR = 2
_WIDTH = 80
_HIGH = 512  # programs seldom close or reopen descriptors from here on that they did not open


class Ending:
    """Writes the snapshot and the summary of a run, once. None of its errors changes the program's exit status."""

    def __init__(self, device: str, snapshot: Path | None, summary: Path | None, as_json: bool) -> None:
        self._device = device
        self._snapshot = snapshot
        self._summary = summary
        self._as_json = as_json
        self._process = os.getpid()
        self._lock = threading.RLock()  # a handler may interrupt the thread that is writing
        self._is_done = False
        self._has_stderr = sys.stderr is not None  # without a stderr now, its number may be another file at the end

    def arm(self) -> None:
        """Registers for the end. Call it before the program runs, so that the program's exit handlers come first."""
        sigterm = _SigTerm(self.write)
        sigterm.arm()
        # Handlers run in the opposite order: the summary is written first, then the watch for signals ends. All threads
        # that the interpreter waits for have ended by then, and __main__ still has its globals.
        atexit.register(sigterm.disarm)
        atexit.register(self.write)

    def write(self) -> None:
        """Writes both, unless that was done already; not in a forked child."""
        with self._lock:
            if self._is_done or os.getpid() != self._process:
                return
            self._is_done = True
            with contextlib.suppress(Exception):  # the reader may be gone
                self._write()

    def _write(self) -> None:
        notes = {}
        if self._snapshot is not None:
            notes["snapshot"] = shown(self._snapshot)
            try:
                mempool.dump_snapshot(self._snapshot, self._device)
            except (OSError, MemoryError) as error:  # the program's own exit status is worth more
                reason = getattr(error, "strerror", None) or str(error)
                notes = {"snapshot_problem": f"the snapshot '{shown(self._snapshot)}' could not be written: {reason}"}
        stats = {device: dict(mempool.memory_stats(device)) for device in _used_devices(self._device)}
        kind = kind_of(self._device).name
        shared = {key: report for key, report in reports_by_key().items() if key.partition("-")[0] == kind}
        if shared and not loads_entry_points():
            notes["children_problem"] = (
                "TORCH_DEVICE_BACKEND_AUTOLOAD=0 is set: processes that the script spawned ran without mempool"
            )
        if self._as_json:
            processes = {key: asdict(report) for key, report in shared.items()}
            text = json.dumps({"devices": stats, "processes": processes, **notes}) + "\n"
        else:
            text = _tables(stats, shared, notes)
        if self._summary is not None:
            try:
                with atomic_write(self._summary) as file:
                    file.write(text.encode())
                return
            except OSError as error:
                text += f"the summary could not be written to '{shown(self._summary)}': {error.strerror}\n"
        if self._has_stderr:
            _write_to_stderr(text.encode(errors="backslashreplace"))


def _used_devices(device: str) -> list[str]:
    found = parse_device(device)
    kind = kind_of(found)
    if not kind.is_numbered or found.index is not None:
        return [str(found)]
    made = (each.name for each in kind.made())
    return [each for each in made if mempool.memory_stats(each)["allocation.all.allocated"] > 0]


def _tables(stats: dict[str, dict[str, int]], shared: dict[str, SharedMemoryReport], notes: dict[str, str]) -> str:
    parts: list[Any] = []
    for device, figures in stats.items():
        name = "CPU" if device == "cpu" else device
        table = Table(title=f"mempool: {name} memory of this run", title_justify="left")
        table.add_column("")
        for metric in ("now", "peak", "total allocated"):
            table.add_column(metric, justify="right")
        for title, key in (("allocated", "allocated_bytes.all"), ("held", "reserved_bytes.all")):
            table.add_row(title, *(format_size(figures[f"{key}.{m}"]) for m in ("current", "peak", "allocated")))
        table.add_row("blocks", *(str(figures[f"allocation.all.{m}"]) for m in ("current", "peak", "allocated")))
        parts.append(table)
        parts.append(
            f"out-of-memory errors {figures['num_ooms']}, retries {figures['num_alloc_retries']}, "
            f"commits {figures['num_device_alloc']}, decommits {figures['num_device_free']}"
        )
    if not stats:
        parts.append("mempool: no CUDA tensor was made in this process")
    for key, report in shared.items():
        if [row.pid for row in report.processes] not in ([], [os.getpid()]):
            parts += _process_table("CPU" if key == "cpu" else key, report)
    parts += [f"snapshot: {text}" if key == "snapshot" else text for key, text in notes.items()]
    width = shutil.get_terminal_size((_WIDTH, 0)).columns
    return render(*parts, width=max(width, _WIDTH))


def _process_table(device: str, report: SharedMemoryReport) -> list[Any]:
    """What each process has held, and the most that all held at one moment, which is not the sum of their peaks."""
    table = Table(title=f"mempool: {device} memory of its processes", title_justify="left", show_footer=True)
    table.add_column("process", footer="all at one moment")
    table.add_column("pid", justify="right")
    table.add_column("held now", justify="right", footer=format_size(report.held))
    table.add_column("peak held", justify="right", footer=format_size(report.peak_held))
    for process in report.processes:
        held = format_size(process.held) if process.is_alive else "ended"
        table.add_row(printable(process.name), str(process.pid), held, format_size(process.peak_held))
    limit = [] if report.limit is None else [f"their limit: {format_size(report.limit)}"]
    return [table, *limit]


def _write_to_stderr(data: bytes) -> None:
    """Writes past ``sys.stderr``, which keeps text that it cannot write, and then the exit status is another one."""
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    # The program may have restored SIGPIPE's default action: a reader that has gone must not end the program here.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        while data:
            try:
                data = data[os.write(_STDERR, data) :]
            except BlockingIOError:
                select.select([], [_STDERR], [], 1.0)
    except OSError:
        signal.sigtimedwait({signal.SIGPIPE}, 0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _SigTerm:
    """Calls a function when SIGTERM comes, and then lets the signal end the process.

    A Python handler runs in the main thread, and only once that has returned from its current operator. So a thread
    waits for the byte that the interpreter's own handler writes to a pipe (``signal.set_wakeup_fd``). If the program
    has replaced the pipe, as asyncio may, the Python handler calls the function. A handler that the program installs
    replaces ours.
    """

    def __init__(self, at_end: Callable[[], None]) -> None:
        self._at_end = at_end
        self._masks = threading.local()
        self._read_end = self._write_end = -1
        self._is_armed = False

    def arm(self) -> None:
        """Starts the watch; for the main thread. Has no effect where the signal is ignored or handled already."""
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return
        self._read_end, self._write_end = map(_moved_up, os.pipe2(os.O_CLOEXEC))
        os.set_blocking(self._write_end, False)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._handle)
        self._is_armed = True
        # A child that was just forked writes to our pipe until it closes it: SIGTERM is blocked meanwhile.
        os.register_at_fork(before=self._block, after_in_parent=self._unblock, after_in_child=self._disarm_child)
        # A program may block a signal in all its threads to wait for it: it must not be delivered to this thread.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            # Not a thread of threading: the program may count those, or wait until only one is left.
            _thread.start_new_thread(self._watch, ())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def disarm(self) -> None:
        """Ends the watch; for the main thread. The signal then ends the process at once, as by default."""
        ours, self._is_armed = self._is_ours(), False
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        current = signal.set_wakeup_fd(-1)
        if current != self._write_end:
            signal.set_wakeup_fd(current)

    def _is_ours(self) -> bool:
        return self._is_armed and signal.getsignal(signal.SIGTERM) == self._handle

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._end()

    def _watch(self) -> None:
        # The program may close all descriptors, as a daemon does: then the Python handler has to do.
        with contextlib.suppress(OSError):
            while numbers := os.read(self._read_end, 64):
                if signal.SIGTERM in numbers and self._is_ours():
                    self._end()

    def _end(self) -> None:
        self._at_end()
        # Only the main thread may call signal.signal(), so this calls the C function.
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
        libc.signal(signal.SIGTERM, None)  # SIG_DFL
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # all other threads may block it
        os.kill(os.getpid(), signal.SIGTERM)

    def _block(self) -> None:
        self._masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if self._is_ours() else ())

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.before)

    def _disarm_child(self) -> None:
        if self._is_armed:
            self.disarm()
            for end in (self._read_end, self._write_end):
                with contextlib.suppress(OSError):  # the program has closed it
                    os.close(end)
        self._unblock()


def _moved_up(descriptor: int) -> int:
    """A duplicate of a descriptor with a high number, where the limit of open files allows one."""
    try:
        high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError:
        return descriptor
    os.close(descriptor)
    return high
