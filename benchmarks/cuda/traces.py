"""Recorded traces through the allocator under torch: time, memory held, and the smallest device that will do."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cuda.device import MIB, Device


class Trace:
    """The events of a trace as arrays, for the loops."""

    def __init__(self, columns: Sequence[array[int]]) -> None:
        self.ops, self.ids, self.sizes, self.streams = (array("q", column) for column in columns[:4])
        live: dict[int, int] = {}
        now = self.peak_live = 0
        for op, block, size in zip(self.ops, self.ids, self.sizes, strict=True):
            if op == 1:
                live[block] = size
                now += size
                self.peak_live = max(self.peak_live, now)
            elif op == 0:
                now -= live.pop(block)

    @classmethod
    def read(cls, path: str | Path) -> Trace:
        from mempool.traces.format import read_columns

        return cls(read_columns(path))

    def streams_on(self, device: Device) -> list[Any]:
        cuda = device.torch.cuda
        return [cuda.default_stream(), *(cuda.Stream() for _ in range(max(self.streams)))]

    def replay(self, device: Device, streams: Sequence[Any], first: int = 0, last: int | None = None) -> float:
        """Seconds of this thread's CPU; negative when memory ran out."""
        handles = (ctypes.c_void_p * len(streams))(*(stream.cuda_stream for stream in streams))
        columns = [column.buffer_info()[0] for column in (self.ops, self.ids, self.sizes, self.streams)]
        return float(device.loops.replay(*columns, first, len(self.ops) if last is None else last, handles))


def _replay_once(device: Device, trace: Trace, streams: Sequence[Any], is_cold: bool) -> dict[str, Any] | None:
    """One replay, with an empty allocator or with what the last one has left in the cache; None when memory ran out."""
    if is_cold:
        device.empty()
    else:
        device.loops.free_blocks()
    device.torch.cuda.reset_peak_memory_stats()
    found = device.measured(lambda: trace.replay(device, streams))
    if found.result < 0:
        return None
    return {
        "reserved_per_live": device.torch.cuda.max_memory_reserved() / trace.peak_live,
        "ns_per_event": found.result * 1e9 / len(trace.ops),
        "wall_ms": found.seconds * 1e3,
        device.calls_name: found.calls,
    }


def replay(device: Device, path: str, capacity: int | None, is_tight: bool, repeats: int) -> dict[str, Any]:
    """A replay from nothing, then some on a warm cache, with at most `capacity` bytes held.

    `is_tight`: with at most a tenth more than what is live, and 64 MiB for what torch has of its own.
    """
    trace = Trace.read(path)
    streams = trace.streams_on(device)
    device.limit(int(1.1 * trace.peak_live) + 64 * MIB if is_tight else capacity)
    cold = _replay_once(device, trace, streams, True)
    out = {"completes": cold is not None, "events": len(trace.ops), "peak_live_bytes": trace.peak_live}
    if cold is None:
        return out
    warm = [again for _ in range(repeats) if (again := _replay_once(device, trace, streams, False)) is not None]
    out |= cold
    out["ns_per_event"] = min(run["ns_per_event"] for run in (cold, *warm))
    if warm:
        out["warm_wall_ms"] = min(run["wall_ms"] for run in warm)
        out[f"warm_{device.calls_name}"] = warm[-1][device.calls_name]
    return out


def smallest(device: Device, path: str) -> dict[str, Any]:
    """The smallest device on which the trace completes, to 0.1% of the live bytes."""
    trace = Trace.read(path)
    streams = trace.streams_on(device)
    low, high = trace.peak_live, 2 * trace.peak_live
    while high - low > trace.peak_live // 1000:
        middle = (low + high) // 2
        device.empty()
        device.limit(middle)
        if _replay_once(device, trace, streams, True) is None:
            low = middle
        else:
            high = middle
    return {"smallest_bytes": high, "smallest_per_live": high / trace.peak_live}
