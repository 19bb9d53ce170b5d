"""Traces: recorded sequences of allocations, replayed through an allocator of their own.

A trace is a CSV file (plain or ``.gz``): lines that begin with ``#`` are comments, then a header, then a line an event.
Columns are taken by name: ``op`` (``alloc``, ``free``, ``record_stream`` or ``step``), ``id`` (of the block; counts up
from 0), ``bytes`` (as asked; of an ``alloc``), and, if there are such, ``stream`` (its number; of an ``alloc`` or
``record_stream``) and ``time_ns`` (since the trace began). Others are for other readers.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TextIO, TypeAlias

from mempool import _core
from mempool._device import Size, optional_size
from mempool._files import StrPath
from mempool.errors import ConfigError, OutOfMemoryError, TraceError


@dataclass(frozen=True)
class ReplayReport:
    """What a replay took. Bytes; ``seconds`` are CPU time of the replaying thread."""

    events: int  # allocations and frees
    peak_live_bytes: int  # most requested bytes live at once: no allocator can hold less
    peak_held_bytes: int  # most physical memory held at once
    end_live_bytes: int
    commits: int
    decommits: int
    moves: int
    moved_bytes: int
    map_calls_in_last_half: int
    timeline: list[tuple[int, int, int]]  # (event, live bytes, held bytes) at some 256 moments, evenly spread
    seconds: float

    @property
    def map_calls(self) -> int:
        """Calls to the backend that take, give back or move memory."""
        return self.commits + self.decommits + self.moves

    @property
    def held_per_live(self) -> float:
        return self.peak_held_bytes / self.peak_live_bytes if self.peak_live_bytes else 0.0

    @property
    def ns_per_event(self) -> float:
        return self.seconds * 1e9 / self.events if self.events else 0.0


def replay(
    path: StrPath,
    device: str = "cpu",
    backend: str | None = None,
    scale: float = 1.0,
    conf: str = "",
    capacity: Size | None = None,
    progress: Callable[[float], object] | None = None,
) -> ReplayReport:
    """Replays a trace, one thread, and reports what it took.

    Free memory decays in the time of the trace, if it has times.

    Args:
        path: the trace.
        device: ``"cpu"``, where streams play no part: a block is free again at once; or ``"cuda"``, where each stream
            has blocks of its own and its work is always done.
        backend: ``"fake"`` (the default: addresses alone, so that a trace larger than the machine replays) or, on CPU,
            ``"host"`` (real memory of this machine; it is held but not touched).
        scale: each size is multiplied by it (and is at least one byte).
        capacity: bytes that the device has; None for no end. With ``"fake"`` only.
        conf: options as in MEMPOOL_CONF, ``"key:value,key:value"``; MEMPOOL_CONF itself is not read.
        progress: called with how much is done, from 0 to 1, now and then. What it raises ends the replay.

    Raises:
        OSError: the file cannot be read.
        TraceError: it is not a trace, or names a block that is not live; the message has the line.
        ConfigError: a scale that is not positive or makes a size of more than 63 bits, an unknown backend or device,
            options that do not parse.
        OutOfMemoryError: the trace needs more than the machine, or ``capacity``, has.
    """
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"traces are replayed on 'cpu' or 'cuda', not {device!r}.")
    if backend not in (None, "fake", "host") or (backend == "host" and device == "cuda"):
        raise ConfigError(f"unknown backend {backend!r} for {device}: it is 'fake' or, on cpu, 'host'.")
    if capacity is not None and backend == "host":
        raise ConfigError("the capacity of the host is what it is: leave it out, or use the backend 'fake'.")
    if not 0 < scale < float("inf"):
        raise ConfigError(f"scale must be a positive number, not {scale!r}.")
    room = optional_size(capacity, "capacity") or 0
    try:
        _core.options(conf)
    except ConfigError as error:
        raise ConfigError(f"conf: {error}") from error
    columns = read_columns(path, scale, lambda share: progress(_READING * share) if progress is not None else None)
    name = {"cpu": backend or "fake", "cuda": "fake-device"}[device]
    if device == "cpu":
        columns = _without_streams(columns)
    events = max(1, len(columns[0]))

    def on_progress(done: int) -> None:
        if progress is not None:
            progress(_READING + (1 - _READING) * done / events)

    try:
        report = ReplayReport(**_core.replay(*columns, name, conf, room, on_progress))
    except MemoryError as error:
        raise OutOfMemoryError(str(error)) from error
    on_progress(events)
    return report


# The share of a replay that the reading of its trace takes.
_READING = 0.9
_LINES_A_REPORT = 1 << 14
_MOST = (1 << 63) - 1


_Read: TypeAlias = "tuple[array[int], array[int], array[int], array[int], array[int]]"
_OPS = {"free": 0, "alloc": 1, "record_stream": 2}


def _without_streams(columns: _Read) -> _Read:
    kept = [i for i, op in enumerate(columns[0]) if op != _OPS["record_stream"]]
    ops, ids, sizes, _, times = (array("q", (column[i] for i in kept)) for column in columns)
    return ops, ids, sizes, array("q", bytes(8 * len(kept))), times


def _open(raw: io.BufferedReader) -> TextIO:
    packed = raw.peek(2)[:2] == b"\x1f\x8b"
    return io.TextIOWrapper(gzip.GzipFile(fileobj=raw) if packed else raw, encoding="utf-8", newline="")


class _Lines:
    """The lines of a trace but for comments, with the number of the last one."""

    def __init__(self, file: TextIO, on_progress: Callable[[], object]) -> None:
        self.number = 0
        self._file = file
        self._on_progress = on_progress

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.number += 1
            if self.number % _LINES_A_REPORT == 0:
                self._on_progress()
            if not line.startswith("#"):
                yield line


def _rows(lines: _Lines) -> Iterator[tuple[str, str, str, str, str]]:
    """(op, id, bytes, stream, time) of each event."""
    reader = csv.reader(iter(lines))
    header = next(reader, None)
    if header is None or not {"op", "id", "bytes"} <= set(header):
        raise TraceError("the header must name the columns op, id and bytes")
    op, block, size = (header.index(column) for column in ("op", "id", "bytes"))
    time = header.index("time_ns") if "time_ns" in header else None
    stream = header.index("stream") if "stream" in header else None
    for row in reader:
        if not row:
            continue  # an empty line
        if len(row) <= max(op, block, size, time or 0, stream or 0):
            raise TraceError(f"{len(row)} columns, the header has {len(header)}")
        number = "0" if stream is None else row[stream] or "0"
        yield row[op], row[block], row[size], number, NO_TIME if time is None else row[time]


NO_TIME = "-1"


def _number(text: str, column: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise TraceError(f"{column} is '{text[:40]}', expected a whole number") from None
    if not -_MOST <= number <= _MOST:
        raise TraceError(f"{column} is larger than 63 bits")
    return number


class _Columns:
    """The events of a trace, checked one by one."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.ops, self.ids, self.sizes, self.streams, self.times = (array("q") for _ in range(5))
        self.live: dict[int, int] = {}  # bytes by id
        self.live_bytes = 0
        self.allocated = 0
        self.start: int | None = None  # the first time

    def add(self, op: str, block: int, size_text: str, stream: int, time: int) -> None:
        size = 0
        if not 0 <= stream < 1 << 20:
            raise TraceError(f"stream {stream}, expected a small number")
        if op == "alloc":
            size = _number(size_text, "bytes")
            if block != self.allocated or size < 0:
                raise TraceError(f"block {block} of {size} bytes, expected id {self.allocated}")
            size = self._scaled(size)
            self.allocated += 1
            self.live[block] = size
            self.live_bytes += size
            if self.live_bytes > _MOST:
                raise TraceError("more bytes are live than there are addresses")
        elif block not in self.live:
            done = "freed" if op == "free" else "used on a stream"
            raise TraceError(f"block {block} is {done} but not live")
        elif op == "free":
            self.live_bytes -= self.live.pop(block)
        self.ops.append(_OPS[op])
        self.ids.append(block)
        self.sizes.append(size)
        self.streams.append(stream)
        if time >= 0:
            self.start = time if self.start is None else self.start
            time = max(0, time - self.start)
        self.times.append(time)

    def _scaled(self, size: int) -> int:
        if size == 0 or self.scale == 1:
            return size
        scaled = size * self.scale
        if scaled > _MOST:
            raise ConfigError(f"scale {self.scale:g} makes {size} bytes overflow 63 bits")
        return max(1, int(scaled))


def read_columns(path: StrPath, scale: float = 1.0, progress: Callable[[float], object] | None = None) -> _Read:
    """A trace's events: what each is, its block, size, stream and time; a column each. Arguments as for `replay`."""
    name = os.fsdecode(path)
    columns = _Columns(scale)
    with open(path, "rb") as raw:
        total = max(1, os.fstat(raw.fileno()).st_size)
        lines = _Lines(_open(raw), lambda: progress(min(1.0, raw.tell() / total)) if progress is not None else None)
        try:
            for op, block, size, stream, time in _rows(lines):
                if op in _OPS:
                    columns.add(op, _number(block, "id"), size, _number(stream, "stream"), _number(time, "time_ns"))
                elif op != "step":
                    raise TraceError(f"unknown operation '{op[:40]}'")
        except TraceError as error:
            raise TraceError(f"{name} is not a trace: line {lines.number}: {error}.") from None
        except ConfigError as error:
            raise ConfigError(f"{name} line {lines.number}: {error}.") from None
        except (ValueError, csv.Error, EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's, not the file's contents
            raise TraceError(f"{name} is not a trace: after line {lines.number}: {error}.") from error
    return columns.ops, columns.ids, columns.sizes, columns.streams, columns.times
