"""One process of the allocation benchmark: times pairs of torch.empty and free for each size, prints one line of JSON.

    python -m benchmarks.alloc.worker --allocator mempool --threads 2 --pairs 20000 --batches 5

The loop is TorchScript, run without its optimizer: called from Python it holds no GIL, so two threads do allocate at
once, and an interpreted pair of `torch.empty` costs less around the allocator than one from Python. Optimized, it
would be unrolled and its equal calls merged into one, and no longer be a loop of allocations.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import warnings
from collections.abc import Callable, Sequence

from benchmarks.alloc import SIZES
from benchmarks.common import Json, allocator_stats, use_allocator
from benchmarks.peers import NAMES

WARMUP_PAIRS = 500  # in each thread and size, before the first batch

Loop = Callable[[int, int], int]  # (pairs, size in bytes) -> bytes asked for
Mark = tuple[float, float]  # when a batch started and ended in one thread, seconds of perf_counter


def scripted_loop() -> Loop:
    """A function (pairs, size in bytes) that makes and drops that many tensors; it returns the bytes it asked for."""
    import torch

    def loop(pairs: int, size: int) -> int:
        total = 0
        for _ in range(pairs):
            tensor = torch.empty([size], dtype=torch.uint8)
            total += tensor.size(0)  # an unused tensor would not be made at all
        return total

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated, but nothing else loops without the GIL
        scripted: Callable[[int, int], int] = torch.jit.script(loop)

    def run(pairs: int, size: int) -> int:
        with torch.jit.optimized_execution(False):  # belongs to the thread, so it is set here
            return scripted(pairs, size)

    return run


def timed_batches(loop: Loop, sizes: Sequence[int], threads: int, pairs: int, batches: int) -> list[list[Mark]]:
    """For each thread the start and end, in seconds, of every batch: all sizes once, then all again, `batches` times.

    The sizes take turns, so that a slow moment of the machine does not fall on one of them. The calling thread is one
    of the threads: glibc serves the main thread from another heap than the rest, and one thread means the main one.
    """
    marks: list[list[Mark]] = [[] for _ in range(threads)]
    together = threading.Barrier(threads)

    def work(mine: list[Mark]) -> None:
        for size in sizes:
            loop(WARMUP_PAIRS, size)
        for size in [*sizes] * batches:
            together.wait()
            start = time.perf_counter()
            loop(pairs, size)
            mine.append((start, time.perf_counter()))

    others = [threading.Thread(target=work, args=(mine,)) for mine in marks[1:]]
    for other in others:
        other.start()
    work(marks[0])
    for other in others:
        other.join()
    return marks


def measure(side: str, sizes: Sequence[int], threads: int, pairs: int, batches: int) -> Json:
    """Nanoseconds that a thread waits for a pair, by size in bytes, one number a batch: first start to last end."""
    loop = scripted_loop()
    before = allocator_stats(side).get("allocation.all.allocated", 0)
    marks = timed_batches(loop, sizes, threads, pairs, batches)
    made = allocator_stats(side).get("allocation.all.allocated", 0) - before
    # Zero bytes are no allocation. This proves that the loop was not optimized away and that it ran on this allocator.
    wanted = sum(1 for size in sizes if size) * threads * (WARMUP_PAIRS + pairs * batches)
    if allocator_stats(side) and made != wanted:
        raise SystemExit(f"mempool counted {made} allocations, but {wanted} were asked for")
    seconds = [max(end for _, end in batch) - min(start for start, _ in batch) for batch in zip(*marks, strict=True)]
    nanoseconds = [each / pairs * 1e9 for each in seconds]
    return {
        "allocator": side,
        "nanoseconds_a_pair": {size: nanoseconds[index :: len(sizes)] for index, size in enumerate(sizes)},
    }


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--allocator", choices=NAMES, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--batches", type=int, required=True)
    options = parser.parse_args()

    use_allocator(options.allocator)
    print(json.dumps(measure(options.allocator, SIZES, options.threads, options.pairs, options.batches)))


if __name__ == "__main__":
    main()
