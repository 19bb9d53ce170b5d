"""``replay``: replays a trace through an allocator of its own, and reports memory, calls and time."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

from mempool import _core
from mempool._device import KINDS, Size, optional_size
from mempool._files import StrPath
from mempool.errors import ConfigError, OutOfMemoryError
from mempool.traces.format import OPS, Columns, read_columns

# The share of a replay's time that reading the trace takes, for the progress.
_READING = 0.9

_MOST_THREADS = 1024


@dataclass(frozen=True)
class ReplayReport:
    """The memory, calls and time that a replay took."""

    events: int  # allocations and frees
    peak_live_bytes: int  # most requested bytes live at once: no allocator can hold less
    peak_held_bytes: int  # most physical memory held at once
    end_live_bytes: int  # requested bytes that the trace never frees
    commits: int  # calls that took memory
    decommits: int  # calls that gave memory back
    moves: int  # calls that remapped free memory
    moved_bytes: int
    map_calls_in_last_half: int  # map calls in the second half of the events: a workload in its steady state makes none
    timeline: list[tuple[int, int, int]]  # (event, live bytes, held bytes) at about 256 moments, evenly spread
    seconds: float  # CPU time of the threads that replay

    @property
    def map_calls(self) -> int:
        """Calls to the backend that take, give back or move memory."""
        return self.commits + self.decommits + self.moves

    @property
    def held_per_live(self) -> float:
        """Peak held bytes divided by peak live bytes."""
        return self.peak_held_bytes / self.peak_live_bytes if self.peak_live_bytes else 0.0

    @property
    def ns_per_event(self) -> float:
        """Nanoseconds of CPU time for each event."""
        return self.seconds * 1e9 / self.events if self.events else 0.0


def replay(
    path: StrPath,
    device: str = "cpu",
    backend: str | None = None,
    scale: float = 1.0,
    conf: str = "",
    capacity: Size | None = None,
    progress: Callable[[float], object] | None = None,
    threads: int = 1,
) -> ReplayReport:
    """Replays a trace, and reports the memory, calls and time that it took.

    Free memory decays by the clock of the trace, if it has times.

    Args:
        path: the trace.
        device: ``"cpu"``, which ignores streams, so that a freed block is free at once; ``"cuda"``, where each
            stream has its own blocks and its work is always done; or ``"pinned"``, which ignores streams, too, and
            takes its memory in pieces that do not move.
        backend: ``"fake"`` (the default: addresses without memory, so that a trace larger than the machine replays) or,
            on CPU, ``"host"`` (real memory of this machine, which is held but not touched).
        scale: each size is multiplied by it (and is at least one byte).
        capacity: the memory of the device in bytes; None for no limit. With ``"fake"`` only.
        conf: options as in MEMPOOL_CONF, ``"key:value,key:value"``; MEMPOOL_CONF itself is not read.
        progress: called now and then with the share that is done, from 0 to 1. An exception from it ends the replay.
        threads: how many play the events, in their order, 64 in a row each: most blocks are then freed by another
            thread than allocated them. What the trace says of its threads is not read.

    Raises:
        OSError: the file cannot be read.
        TraceError: the file is no trace, or names a block that is not live; the message has the line.
        ConfigError: a scale that is not positive or makes a size of more than 63 bits, an unknown backend or device,
            options that do not parse, less than one thread or more than 1,024.
        OutOfMemoryError: the trace needs more than the machine, or ``capacity``, has.
    """
    if device not in KINDS:
        raise ConfigError(f"traces are replayed on {' or '.join(map(repr, KINDS))}, not {device!r}.")
    backends = KINDS[device].replay_backends
    if backend is not None and backend not in backends:
        raise ConfigError(f"unknown backend {backend!r} for {device}: it is 'fake' or, on cpu, 'host'.")
    if capacity is not None and backend == "host":
        raise ConfigError("the capacity of the host is what it is: leave it out, or use the backend 'fake'.")
    if not 0 < scale < float("inf"):
        raise ConfigError(f"scale must be a positive number, not {scale!r}.")
    if not 1 <= threads <= _MOST_THREADS:
        raise ConfigError(f"a trace is played by 1 to {_MOST_THREADS:,} threads, not {threads!r}.")
    room = optional_size(capacity, "capacity") or 0
    try:
        _core.options(conf)
    except ConfigError as error:
        raise ConfigError(f"conf: {error}") from error
    columns = read_columns(path, scale, lambda share: progress(_READING * share) if progress is not None else None)
    name = backends[backend or next(iter(backends))]
    if not KINDS[device].has_streams:
        columns = _without_streams(columns)
    events = max(1, len(columns[0]))

    def on_progress(done: int) -> None:
        if progress is not None:
            progress(_READING + (1 - _READING) * done / events)

    try:
        report = ReplayReport(**_core.replay(*columns, name, conf, room, threads, on_progress))
    except MemoryError as error:
        raise OutOfMemoryError(str(error)) from error
    on_progress(events)
    return report


def _without_streams(columns: Columns) -> Columns:
    kept = [i for i, op in enumerate(columns[0]) if op != OPS["record_stream"]]
    ops, ids, sizes, _, times = (array("q", (column[i] for i in kept)) for column in columns)
    return ops, ids, sizes, array("q", bytes(8 * len(kept))), times
