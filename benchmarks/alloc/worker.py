"""One process of the allocation benchmark: times torch's CPU allocator for each size, prints one line of JSON.

    python -m benchmarks.alloc.worker --allocator mempool --loops loops.so --threads 2 --pairs 2560 --batches 5 [--many]

The loops are C++ (`loops.cpp`) and call the allocator as torch does, through `c10::Allocator`; they hold no GIL, so two
threads do allocate at once.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.alloc import MANY_LIVE, SIZES
from benchmarks.common import Json, allocator_stats, use_allocator
from benchmarks.peers import NAMES

WARMUP_PAIRS = 512  # in each thread and size, before the first batch

Loop = Callable[[int, int, int], None]  # (pairs, size in bytes, blocks that are live at once)
Case = tuple[int, int]  # (size in bytes, blocks that are live at once; 0: a loop that shares nothing, of no block)
Mark = tuple[float, float]  # when a batch started and ended in one thread, seconds of perf_counter


def compiled_loop(library: Path) -> Loop:
    """The loop of the built `loops.cpp`; `pairs` must be a multiple of the blocks that are live at once."""
    import torch  # noqa: F401 - loads libc10.so, which the library needs

    loops = ctypes.CDLL(str(library))
    loops.allocate_pairs.argtypes = [ctypes.c_size_t, ctypes.c_int64]
    loops.allocate_batches.argtypes = [ctypes.c_size_t, ctypes.c_int64, ctypes.c_int64]
    loops.share_nothing.argtypes = [ctypes.c_int64]

    def run(pairs: int, size: int, live: int) -> None:
        if live == 0:
            loops.share_nothing(pairs)
        elif live == 1:
            loops.allocate_pairs(size, pairs)
        else:
            loops.allocate_batches(size, pairs, live)

    return run


def timed_batches(loop: Loop, cases: Sequence[Case], threads: int, pairs: int, batches: int) -> list[list[Mark]]:
    """For each thread the start and end, in seconds, of every batch: `batches` rounds of all cases.

    The cases take turns, so that a slow moment of the machine does not hit a single case. The calling thread is one of
    the threads: glibc serves the main thread from another heap than the rest, and one thread means the main one.
    """
    marks: list[list[Mark]] = [[] for _ in range(threads)]
    together = threading.Barrier(threads)

    def work(mine: list[Mark]) -> None:
        for size, live in cases:
            loop(WARMUP_PAIRS, size, live)
        for size, live in [*cases] * batches:
            together.wait()
            start = time.perf_counter()
            loop(pairs, size, live)
            mine.append((start, time.perf_counter()))

    others = [threading.Thread(target=work, args=(mine,)) for mine in marks[1:]]
    for other in others:
        other.start()
    work(marks[0])
    for other in others:
        other.join()
    return marks


def measure(
    side: str, loop: Loop, sizes_by_live: Mapping[int, Sequence[int]], threads: int, pairs: int, batches: int
) -> Json:
    """Nanoseconds that a thread waits for a pair, by case, a number for each batch: from first start to last end.

    Of mempool also how often a pair took an arena's lock, on the average of all of them.
    """
    cases: list[Case] = [(size, live) for live, sizes in sizes_by_live.items() for size in sizes]
    before = allocator_stats(side)
    marks = timed_batches(loop, cases, threads, pairs, batches)
    after = allocator_stats(side)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    made = grown.get("allocation.all.allocated", 0)
    # The statistics prove that the loops ran on this allocator. Pairs of zero bytes allocate nothing, and do not count.
    wanted = sum(1 for size, _ in cases if size) * threads * (WARMUP_PAIRS + pairs * batches)
    if after and made != wanted:
        raise SystemExit(f"mempool counted {made} allocations, but {wanted} were asked for")
    seconds = [max(end for _, end in batch) - min(start for start, _ in batch) for batch in zip(*marks, strict=True)]
    nanoseconds = [each / pairs * 1e9 for each in seconds]
    found: dict[int, dict[int, list[float]]] = {live: {} for live in sizes_by_live}
    for index, (size, live) in enumerate(cases):
        found[live][size] = nanoseconds[index :: len(cases)]
    locks = {name: grown.get(f"num_arena_{name}", 0) / wanted for name in ("locks", "lock_waits")}
    return {"allocator": side, "nanoseconds_a_pair": found, "a_pair": locks}


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--allocator", choices=NAMES, required=True)
    parser.add_argument("--loops", type=Path, required=True, help="the built loops.cpp")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--batches", type=int, required=True)
    parser.add_argument("--many", action="store_true", help="the cases of benchmarks.alloc.scaling")
    options = parser.parse_args()

    use_allocator(options.allocator)
    loop = compiled_loop(options.loops)
    sizes = MANY_LIVE if options.many else SIZES
    print(json.dumps(measure(options.allocator, loop, sizes, options.threads, options.pairs, options.batches)))


if __name__ == "__main__":
    main()
