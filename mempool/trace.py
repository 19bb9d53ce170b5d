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
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO, TypeAlias

from mempool import _core
from mempool._device import Size, optional_size
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
    path: str | os.PathLike[str],
    device: str = "cpu",
    backend: str | None = None,
    scale: float = 1.0,
    conf: str = "",
    capacity: Size | None = None,
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

    Raises:
        OSError: the file cannot be read.
        TraceError: it is not a trace, or names a block that is not live; the message has the line.
        ConfigError: a scale that is not positive, an unknown backend or device.
        OutOfMemoryError: the trace needs more than the machine has.
    """
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"traces are replayed on 'cpu' or 'cuda', not {device!r}.")
    if backend not in (None, "fake", "host") or (backend == "host" and device == "cuda"):
        raise ConfigError(f"unknown backend {backend!r} for {device}: it is 'fake' or, on cpu, 'host'.")
    if capacity is not None and backend == "host":
        raise ConfigError("the capacity of the host is what it is: leave it out, or use the backend 'fake'.")
    if not 0 < scale < float("inf"):
        raise ConfigError(f"scale must be a positive number, not {scale!r}.")
    columns = _read(path, scale)
    name = {"cpu": backend or "fake", "cuda": "fake-device"}[device]
    if device == "cpu":
        columns = _without_streams(columns)
    try:
        return ReplayReport(**_core.replay(*columns, name, conf, optional_size(capacity, "capacity") or 0))
    except MemoryError as error:
        raise OutOfMemoryError(str(error)) from error


_Read: TypeAlias = "tuple[array[int], array[int], array[int], array[int], array[int]]"
_OPS = {"free": 0, "alloc": 1, "record_stream": 2}


def _without_streams(columns: _Read) -> _Read:
    kept = [i for i, op in enumerate(columns[0]) if op != _OPS["record_stream"]]
    ops, ids, sizes, _, times = (array("q", (column[i] for i in kept)) for column in columns)
    return ops, ids, sizes, array("q", bytes(8 * len(kept))), times


def _open(path: str | os.PathLike[str]) -> TextIO:
    with open(path, "rb") as probe:
        packed = probe.read(2) == b"\x1f\x8b"
    if packed:
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8", newline="")
    return open(path, encoding="utf-8", newline="")


def _rows(file: TextIO, name: str) -> Iterator[tuple[int, str, str, str, str, str]]:
    """(line, op, id, bytes, stream, time) of each event."""
    numbered = ((number, line) for number, line in enumerate(file, 1) if not line.startswith("#"))
    position = 0

    def lines() -> Iterator[str]:
        nonlocal position
        for position, line in numbered:  # noqa: B007
            yield line

    reader = csv.reader(lines())
    header = next(reader, None)
    if header is None or not {"op", "id", "bytes"} <= set(header):
        raise TraceError(f"{name} is not a trace: its header must name the columns op, id and bytes.")
    op, block, size = (header.index(column) for column in ("op", "id", "bytes"))
    time = header.index("time_ns") if "time_ns" in header else None
    stream = header.index("stream") if "stream" in header else None
    for row in reader:
        if len(row) <= max(op, block, size, time or 0, stream or 0):
            raise TraceError(f"{name} line {position}: {len(row)} columns, the header has {len(header)}.")
        number = "0" if stream is None else row[stream] or "0"
        yield position, row[op], row[block], row[size], number, NO_TIME if time is None else row[time]


NO_TIME = "-1"


class _Columns:
    """The events of a trace, checked one by one."""

    def __init__(self, name: str, scale: float) -> None:
        self.name = name
        self.scale = scale
        self.ops, self.ids, self.sizes, self.streams, self.times = (array("q") for _ in range(5))
        self.live: set[int] = set()
        self.allocated = 0

    def add(self, line: int, op: str, block: int, size_text: str, stream: int, time: int) -> None:
        size = 0
        if not 0 <= stream < 1 << 20:
            raise TraceError(f"{self.name} line {line}: stream {stream}, expected a small number.")
        if op == "alloc":
            size = int(size_text)
            if block != self.allocated or size < 0:
                raise TraceError(
                    f"{self.name} line {line}: block {block} of {size} bytes, expected id {self.allocated}."
                )
            self.allocated += 1
            self.live.add(block)
            size = max(1, int(size * self.scale)) if size else 0
        elif block not in self.live:
            done = "freed" if op == "free" else "used on a stream"
            raise TraceError(f"{self.name} line {line}: block {block} is {done} but not live.")
        elif op == "free":
            self.live.remove(block)
        self.ops.append(_OPS[op])
        self.ids.append(block)
        self.sizes.append(size)
        self.streams.append(stream)
        self.times.append(time)


def _read(path: str | os.PathLike[str], scale: float) -> _Read:
    name = os.fspath(path)
    columns = _Columns(name, scale)
    try:
        with _open(path) as file:
            for line, op, block, size, stream, time in _rows(file, name):
                if op in _OPS:
                    columns.add(line, op, int(block), size, int(stream), int(time))
                elif op != "step":
                    raise TraceError(f"{name} line {line}: unknown operation '{op}'.")
    except (ValueError, OverflowError, csv.Error, EOFError, gzip.BadGzipFile) as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(f"{name} is not a trace: {error}.") from error
    return columns.ops, columns.ids, columns.sizes, columns.streams, columns.times
