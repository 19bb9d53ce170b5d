"""Blocks that several streams use: whether every byte is right when they race, and what lagging streams cost."""

from __future__ import annotations

import random
import time
from array import array
from contextlib import ExitStack
from typing import Any

from benchmarks.cuda.device import MIB, Device, StandIn
from benchmarks.cuda.traces import Trace

_RACE_BYTES = (2_048, 70_144, 600_064, 3 * MIB, 9 * MIB, 40 * MIB)
_SAMPLE_BYTES = 256
_LAG_CYCLES = 200_000  # some 100 us: streams fall behind the host, which is what a race needs
_LIVE_BLOCKS = 24


class _Race:
    """Blocks pass between streams. What is written to each is read on another stream, into a log of samples."""

    def __init__(self, device: Device, count: int, seed: int) -> None:
        torch = device.torch
        self.device, self.cuda, self.choose = device, torch.cuda, random.Random(seed)
        self.streams = [torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
        # Patterns of a prime number of kinds, so that neighbours in time differ.
        host = [torch.full((max(_RACE_BYTES),), value, dtype=torch.uint8) for value in range(7)]
        self.patterns = [each.cuda() for each in host]
        self.log = torch.zeros(2 * count, _SAMPLE_BYTES, dtype=torch.uint8).cuda()
        self.expected: list[int] = []
        self.live: list[tuple[Any, int, int]] = []
        torch.cuda.synchronize()

    def make(self, index: int) -> None:
        """A block of a random size, written on a random stream."""
        own = self.choose.randrange(3)
        with self.cuda.stream(self.streams[own]):
            block = self.device.block(self.choose.choice(_RACE_BYTES))
            block.copy_(self.patterns[index % 7][: block.nbytes], non_blocking=True)
        self.live.append((block, index % 7, own))

    def end_one(self) -> None:
        """Another stream, which lags, reads both ends of a block; then the block is freed at once."""
        block, value, own = self.live.pop(self.choose.randrange(len(self.live)))
        other = self.streams[self.choose.randrange(3)]
        with self.cuda.stream(other):
            other.wait_stream(self.streams[own])
            self.cuda._sleep(_LAG_CYCLES)
            for sample in (block[:_SAMPLE_BYTES], block[-_SAMPLE_BYTES:]):
                self.log[len(self.expected)].copy_(sample, non_blocking=True)
                self.expected.append(value)
            block.record_stream(other)

    def wrong(self) -> int:
        """Samples that are not what was written."""
        self.cuda.synchronize()
        found = self.log[: len(self.expected)].cpu()
        return sum(bool((row != value).any()) for row, value in zip(found, self.expected, strict=True))


def races(device: Device, scale: float, seed: int = 3) -> dict[str, Any]:
    """Thousands of blocks pass between three streams under record_stream: none may be written by another's owner."""
    count = max(200, int(6000 * scale))
    race = _Race(device, count, seed)
    begun = time.perf_counter()
    for index in range(count):
        race.make(index)
        if len(race.live) > _LIVE_BLOCKS:
            race.end_one()
        if device.side == "mempool" and index % 500 == 499:
            import mempool

            mempool.defragment("cuda")
    wrong = race.wrong()
    return {"samples": len(race.expected), "wrong_samples": wrong, "seconds": time.perf_counter() - begun}


def _offload_trace(steps: int, seed: int = 1) -> tuple[Trace, list[int]]:
    """A trace of activations that a side stream offloads: it uses each block, too, which is freed soon after."""
    choose = random.Random(seed)
    ops, ids, sizes, streams = (array("q") for _ in range(4))
    marks = []
    next_id = 0

    def add(op: int, block: int, size: int = 0, stream: int = 0) -> None:
        for column, value in zip((ops, ids, sizes, streams), (op, block, size, stream), strict=True):
            column.append(value)

    for _ in range(steps):
        recent: list[int] = []
        for _ in range(96):
            for size in (choose.randrange(4, 64) * MIB, choose.randrange(1, 2048) * 1024):
                add(1, next_id, size)
                add(2, next_id, 0, 1)
                recent.append(next_id)
                next_id += 1
            while len(recent) > 24:
                add(0, recent.pop(0))
        for block in recent:
            add(0, block)
        marks.append(len(ops))
    return Trace((ops, ids, sizes, streams)), marks


def offload(device: Device) -> dict[str, Any]:
    """Replays that trace, both streams stalled until the next step, on a device of 1.2 times its peak live bytes.

    Only the stand-in can hold its streams.
    """
    assert isinstance(device, StandIn)
    trace, marks = _offload_trace(60)
    streams = [device.torch.cuda.Stream(), device.torch.cuda.Stream()]
    device.empty()
    device.limit(int(1.2 * trace.peak_live))
    device.torch.cuda.reset_peak_memory_stats()
    before = device.calls()
    first = 0
    completes = True
    for mark in marks:
        with ExitStack() as stack:
            for stream in streams:
                stack.enter_context(device.controls.held(stream))
                # This work never ends: events that are recorded behind it stay pending.
                device.controls.write_later(stream, 0, 0, 0)
            completes = trace.replay(device, streams, first, mark) >= 0
        first = mark
        if not completes:
            break
    return {
        "completes": completes,
        "peak_live_bytes": trace.peak_live,
        "reserved_per_live": device.torch.cuda.max_memory_reserved() / trace.peak_live,
        device.calls_name: device.calls() - before,
    }
