"""Reads traces, recorded sequences of allocations, and checks them.

A trace is a CSV file (plain or ``.gz``): a header, then a line for each event; lines that begin with ``#`` are
comments. Columns are found by name: ``op`` (``alloc``, ``free``, ``record_stream`` or ``step``), ``id`` (of the block;
counts up from 0), ``bytes`` (requested; of an ``alloc``), and optionally ``stream`` (a number; of an ``alloc`` or
``record_stream``) and ``time_ns`` (since the trace began). Other columns are ignored.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from array import array
from collections.abc import Callable, Iterator
from typing import TextIO, TypeAlias

from mempool._files import StrPath
from mempool.errors import ConfigError, TraceError

_LINES_A_REPORT = 1 << 14
_MOST = (1 << 63) - 1


# The columns of all events: the index in OPS, block, bytes, stream, time in ns.
Columns: TypeAlias = "tuple[array[int], array[int], array[int], array[int], array[int]]"
OPS = {"free": 0, "alloc": 1, "record_stream": 2}


def _open(raw: io.BufferedReader) -> TextIO:
    packed = raw.peek(2)[:2] == b"\x1f\x8b"
    return io.TextIOWrapper(gzip.GzipFile(fileobj=raw) if packed else raw, encoding="utf-8", newline="")


class _Lines:
    """Iterates over the lines of a trace without its comments, and counts all lines."""

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
    """Yields (op, id, bytes, stream, time) of each event."""
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


class _Events:
    """Collects the events of a trace, and checks each."""

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
        self.ops.append(OPS[op])
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


def read_columns(path: StrPath, scale: float = 1.0, progress: Callable[[float], object] | None = None) -> Columns:
    """The events of a trace as columns: operation, block, size, stream and time. Arguments as for `replay`.

    Raises OSError, TraceError, and ConfigError where ``scale`` makes a size overflow.
    """
    name = os.fsdecode(path)
    columns = _Events(scale)
    with open(path, "rb") as raw:
        total = max(1, os.fstat(raw.fileno()).st_size)
        lines = _Lines(_open(raw), lambda: progress(min(1.0, raw.tell() / total)) if progress is not None else None)
        try:
            for op, block, size, stream, time in _rows(lines):
                if op in OPS:
                    columns.add(op, _number(block, "id"), size, _number(stream, "stream"), _number(time, "time_ns"))
                elif op != "step":
                    raise TraceError(f"unknown operation '{op[:40]}'")
        except TraceError as error:
            raise TraceError(f"{name} is not a trace: line {lines.number}: {error}.") from None
        except ConfigError as error:
            raise ConfigError(f"{name} line {lines.number}: {error}.") from None
        except (ValueError, csv.Error, EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # an error of the disk, not of the file's contents
            raise TraceError(f"{name} is not a trace: after line {lines.number}: {error}.") from error
    return columns.ops, columns.ids, columns.sizes, columns.streams, columns.times
