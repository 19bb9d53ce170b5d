"""Allocation by itself: cached blocks, small operators, growth from nothing, and wide blocks from scattered holes."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

from benchmarks.cuda.device import GIB, MIB, Device

_PAIR_BYTES = (512, 64 << 10, MIB, 20 * MIB)
_HOLE_BYTES = 16 * MIB
_SAMPLE_BYTES = 4096


def pairs(device: Device, count: int = 200_000) -> dict[str, Any]:
    """Nanoseconds for a cached block's allocation and free, on one thread and on two at the same time."""
    out: dict[str, Any] = {}
    for size in _PAIR_BYTES:
        device.loops.pairs(size, 1000)
        out[f"{size}_bytes_ns"] = min(device.loops.pairs(size, count) for _ in range(5)) / count * 1e9
        marks: list[float] = []
        threads = [
            threading.Thread(target=lambda s=size, m=marks: m.append(device.loops.pairs(s, count))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        out[f"{size}_bytes_two_threads_ns"] = max(marks) / count * 1e9
    return out


def operators(device: Device, count: int = 3000) -> dict[str, Any]:
    """Microseconds of the host for small operators behind one another, of which the allocator is a share."""
    torch = device.torch
    x = torch.zeros(256, device="cuda")
    calls = {"add": lambda: x + 1, "softmax": lambda: torch.softmax(x, 0), "empty_like": lambda: torch.empty_like(x)}
    out = {}
    for name, call in calls.items():
        call()
        times = []
        for _ in range(7):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            for _ in range(count):
                call()
            times.append((time.perf_counter() - begun) / count * 1e6)
        out[f"{name}_us"] = statistics.median(times)
    return out


def cold(device: Device, scale: float) -> dict[str, Any]:
    """Memory from nothing and back to the driver, in blocks of three sizes: the driver's calls are most of it."""
    out: dict[str, Any] = {}
    for mib, total in ((2, 4 * GIB), (64, 16 * GIB), (1024, 16 * GIB)):
        count = max(2, device.scaled(total, scale) // (mib * MIB))
        device.torch.cuda.empty_cache()
        growth = device.measured(lambda size=mib * MIB, n=count: [device.block(size) for _ in range(n)])
        growth.result.clear()
        back = device.measured(device.torch.cuda.empty_cache)
        out[f"{mib}_mib_blocks"] = count
        out[f"{mib}_mib_growth_us_a_block"] = growth.seconds / count * 1e6
        out[f"{mib}_mib_back_us_a_block"] = back.seconds / count * 1e6
        out[f"{mib}_mib_{device.calls_name}"] = growth.calls + back.calls
    return out


def holes(device: Device, scale: float) -> dict[str, Any]:
    """Every second block of many is freed, then wide blocks are asked for: do the holes serve them, and how fast?"""
    torch = device.torch
    total = device.scaled(8 * GIB, scale)
    count = total // _HOLE_BYTES
    # Copies write the data, not kernels: the stand-in has no kernels, and then the check is one there as well.
    patterns = [torch.full((_HOLE_BYTES,), value, dtype=torch.uint8).cuda() for value in range(4)]
    base = torch.cuda.memory_reserved()
    kept = [device.block(_HOLE_BYTES) for _ in range(count)]
    for index, each in enumerate(kept):
        each.copy_(patterns[index % 4])
    free = torch.cuda.mem_get_info()[0]
    del kept[::2]
    wide, times = [], []
    for _ in range(4):
        made = device.measured(lambda: device.block(total // 8))
        times.append(made.seconds * 1e3)
        wide.append(made.result)
    again = []
    for _ in range(20):  # a steady state: the same wide block, freed and asked for
        made = None  # it holds a block, too
        wide.pop()
        made = device.measured(lambda: device.block(total // 8))
        again.append(made.seconds * 1e3)
        wide.append(made.result)
    live = sum(each.nbytes for each in (*kept, *wide))
    samples = [(place.cpu(), index) for index, each in enumerate(kept) for place in _ends(each)]
    return {
        "reserved_per_live": (torch.cuda.memory_reserved() - base) / live,
        "device_took_more_mib": (free - torch.cuda.mem_get_info()[0]) / MIB,
        "first_wide_ms": times[0],
        "other_wide_ms": statistics.median(times[1:]),
        "again_ms": statistics.median(again),
        "wrong_blocks": sum(bool((sample != (2 * index + 1) % 4).any()) for sample, index in samples),
    }


def _ends(block: Any) -> tuple[Any, Any]:
    return block[:_SAMPLE_BYTES], block[-_SAMPLE_BYTES:]
