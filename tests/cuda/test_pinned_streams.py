"""Pinned blocks under work that has not happened yet: no block is given out again too early, in whatever order."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import control
import pytest
import torch
from host_allocator import Block, HostAllocator

MIB = 1 << 20


@pytest.fixture(scope="module")
def host(compiled: Callable[[str], Path]) -> HostAllocator:
    return HostAllocator(compiled("host_calls.cpp"))


class Walk:
    """Random operations on blocks and held streams.

    A block that a stream is to use gets one piece of work, which writes a pattern when its turn comes, and a later one,
    which looks whether the pattern is there still. Whoever is given a block writes to it at once.
    """

    def __init__(self, host: HostAllocator, standin: control.Standin, seed: int, records: bool) -> None:
        self._host, self._standin, self._records = host, standin, records
        self._chance = random.Random(seed)
        self._streams = [torch.cuda.Stream(device) for device in (0, 0, 1)]
        self._idle: list[tuple[Block, int]] = []
        self._used: list[Block] = []

    def run(self, steps: int) -> int:
        """Returns how many patterns were gone."""
        before = self._standin.violations()
        with ExitStack() as held:
            for stream in self._streams:
                held.enter_context(self._standin.held(stream))
            for step in range(steps):
                self._step(step)
            for block in [*self._used, *(block for block, _ in self._idle)]:
                self._host.free(block)
        for device in range(2):
            torch.cuda.synchronize(device)
        return self._standin.violations() - before

    def _step(self, step: int) -> None:
        kind = self._chance.random()
        if kind < 0.4:
            size = self._chance.choice((64, 600, 5000, 30_000, 40_000)) if kind > 0.005 else 2 * MIB
            block = self._host.allocate(size)
            ctypes.memset(block.address, step % 251, size)
            self._idle.append((block, size))
        elif kind < 0.65 and self._idle:
            self._use(*self._take(self._idle), step)
        elif kind < 0.95 and self._used:
            self._host.free(self._take(self._used))
        elif kind < 0.97 and self._idle:
            self._host.free(self._take(self._idle)[0])
        else:
            self._standin.step(self._chance.choice(self._streams), self._chance.randrange(40))

    def _use(self, block: Block, size: int, step: int) -> None:
        stream = self._chance.choice(self._streams)
        self._standin.write_later(stream, block.address, size, step)
        self._standin.check_later(stream, block.address, size, step)
        if self._records:
            assert self._host.record(block.address, block.context, stream)
        self._used.append(block)

    def _take(self, blocks: list) -> object:
        index = self._chance.randrange(len(blocks))
        blocks[index], blocks[-1] = blocks[-1], blocks[index]
        return blocks.pop()


@pytest.mark.gpus(2)
def test_no_block_is_reused_under_work_that_waits(pinned: None, host: HostAllocator, standin: control.Standin) -> None:
    assert Walk(host, standin, 1, records=False).run(3000) > 0, "the walk finds nothing"
    assert Walk(host, standin, 2, records=True).run(100_000) == 0
