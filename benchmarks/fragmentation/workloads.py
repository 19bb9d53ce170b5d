"""The workloads of the fragmentation benchmark: seeded sequences of allocations, equal for every peer.

A workload is a generator of events, ``("alloc", id, bytes)`` or ``("free", id, 0)``. Sizes vary without end, which is
what separates allocators that give memory back (and fault) from those that keep it (and hold).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

KIB, MIB = 1 << 10, 1 << 20
Event = tuple[str, int, int]


def log_uniform(events: int, low: int, high: int, live_bytes: int, seed: int = 5) -> Iterator[Event]:
    """Sizes of equal weight in every doubling between `low` and `high`; victims drawn at random whenever the live bytes
    would pass `live_bytes`."""
    source = random.Random(seed)
    live: list[tuple[int, int]] = []
    total = number = done = 0
    while done < events:
        size = round(math.exp(source.uniform(math.log(low), math.log(high))))
        while live and total + size > live_bytes:
            index = source.randrange(len(live))
            live[index], live[-1] = live[-1], live[index]
            victim, bytes_ = live.pop()
            total -= bytes_
            done += 1
            yield ("free", victim, 0)
        yield ("alloc", number, size)
        live.append((number, size))
        total += size
        number += 1
        done += 1


def serving_mix(events: int, seed: int = 9) -> Iterator[Event]:
    """Weights that stay, requests whose caches double by copying while they live, activations that come and go: about
    600 MiB live."""
    source = random.Random(seed)
    number = done = 0

    def alloc(size: int) -> tuple[Event, int]:
        nonlocal number, done
        number += 1
        done += 1
        return ("alloc", number - 1, size), number - 1

    def free(block: int) -> Event:
        nonlocal done
        done += 1
        return ("free", block, 0)

    for _ in range(80):
        event, _block = alloc(source.randrange(2 * MIB, 6 * MIB))
        yield event
    caches: list[tuple[int, int, int]] = []  # block, bytes, doublings left
    while done < events:
        if len(caches) < 24 and source.random() < 0.5:
            size = source.randrange(256 * KIB, 2 * MIB)
            event, block = alloc(size)
            yield event
            caches.append((block, size, source.randrange(1, 5)))
        if not caches:
            continue
        index = source.randrange(len(caches))
        block, size, left = caches[index]
        if left == 0:
            yield free(block)
            caches[index] = caches[-1]
            caches.pop()
        else:
            event, larger = alloc(2 * size)
            yield event
            yield free(block)
            caches[index] = (larger, 2 * size, left - 1)
        activations = []
        for _ in range(source.randrange(2, 6)):
            event, block = alloc(round(math.exp(source.uniform(math.log(64 * KIB), math.log(16 * MIB)))))
            yield event
            activations.append(block)
        source.shuffle(activations)
        for block in activations:
            yield free(block)


def burst(staying: float, base_bytes: int = 100 * MIB, burst_bytes: int = 1024 * MIB, seed: int = 3) -> Iterator[Event]:
    """Blocks that stay, then many at once, of which the share `staying` stays, scattered among the others: what is held
    some time later is the question."""
    source = random.Random(seed)
    number = 0
    blocks: list[int] = []
    for part, most in (("base", base_bytes), ("burst", burst_bytes)):
        total = 0
        while total < most:
            size = round(math.exp(source.uniform(math.log(64 * KIB), math.log(32 * MIB))))
            yield ("alloc", number, size)
            if part == "burst":
                blocks.append(number)
            number += 1
            total += size
    source.shuffle(blocks)
    for block in blocks[round(staying * len(blocks)) :]:
        yield ("free", block, 0)


WORKLOADS: dict[str, Callable[[], Iterator[Event]]] = {
    "log_uniform_20k": lambda: log_uniform(20_000, 4 * KIB, 256 * MIB, 2048 * MIB),
    "log_uniform_200k": lambda: log_uniform(200_000, 4 * KIB, 256 * MIB, 2048 * MIB),
    "serving_mix": lambda: serving_mix(20_000),
    "up_to_4mib": lambda: log_uniform(100_000, 4 * KIB, 4 * MIB, 400 * MIB),
    "burst_then_idle": lambda: burst(staying=0.0),
    "burst_a_tenth_stays": lambda: burst(staying=0.1),
}
# Each page is touched, and an allocator that gives memory back faults for it again each time, which takes minutes. The
# fast peers suffice there.
LONG = ("log_uniform_200k",)
WAITS = ("burst_then_idle", "burst_a_tenth_stays")
