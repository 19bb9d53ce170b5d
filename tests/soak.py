"""Mixed torch workloads under a limit for some minutes, ending with zero leaked bytes.

    python tests/soak.py [--seconds 600] [--limit 1GiB] [--threads 3]

Every thread trains, infers, allocates at random, runs into limits and puts a pool to sleep, in an order drawn from a
seed. Ends with status 1 if a byte is left, an invariant is broken or a result is wrong.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mempool
from benchmarks.models.workloads import workloads
from mempool._device_cpu import cpu

MIB = 1 << 20


class Soak:
    """What one thread does until told to stop."""

    def __init__(self, seed: int, stop: threading.Event, done: Counter[str]) -> None:
        self.random = random.Random(seed)
        self.stop = stop
        self.done = done
        self.models = [(model, model.build()) for model in workloads(small=True)]
        self.pool = mempool.MemoryPool(f"thread {seed}", limit="96MiB")
        self.own = mempool.MemoryPool(f"own of {seed}", isolated=True)

    def run(self) -> None:
        actions = (self.step, self.churn, self.hit_the_limit, self.sleep)
        while not self.stop.is_set():
            action = self.random.choice(actions)
            try:
                action()
            except mempool.OutOfMemoryError:  # the device's limit, which all threads share
                self.done["refused by the device"] += 1
            self.done[action.__name__] += 1

    def step(self) -> None:
        model, state = self.random.choice(self.models)
        model.step(state)

    def churn(self) -> None:
        blocks: list[torch.Tensor] = []
        with mempool.use_pool(self.pool):
            for _ in range(60):
                size = int(2 ** self.random.uniform(6, 24))
                if blocks and self.random.random() < 0.45:
                    blocks[self.random.randrange(len(blocks))] = torch.empty(0)
                try:
                    blocks.append(torch.full((size,), 7, dtype=torch.uint8))
                except mempool.OutOfMemoryError:
                    blocks.clear()
        assert all(int(block[-1]) == 7 for block in blocks if len(block))

    def hit_the_limit(self) -> None:
        used = self.pool.used_bytes()
        with mempool.use_pool(self.pool):
            try:
                torch.empty(200 * MIB, dtype=torch.uint8)
            except mempool.OutOfMemoryError:
                self.done["refused by a pool"] += 1
        assert self.pool.used_bytes() == used

    def sleep(self) -> None:
        with mempool.use_pool(self.own):
            kept = torch.arange(self.random.randrange(1, 2 * MIB))
        self.own.sleep()
        time.sleep(0.001)
        while True:
            try:
                self.own.wake()
                break
            except mempool.OutOfMemoryError:
                self.done["refused to wake"] += 1
                time.sleep(0.01)
        assert int(kept[-1]) == len(kept) - 1


def work(seed: int, stop: threading.Event, done: Counter[str], errors: list[BaseException]) -> None:
    torch.set_num_threads(1)
    try:
        Soak(seed, stop, done).run()
    except BaseException as error:
        errors.append(error)
        stop.set()


def main() -> int:
    """Runs the soak and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--limit", default="1GiB")
    parser.add_argument("--threads", type=int, default=3)
    options = parser.parse_args()
    console = Console()
    mempool.enable("cpu", limit=options.limit)
    stop = threading.Event()
    done: Counter[str] = Counter()
    errors: list[BaseException] = []
    threads = [threading.Thread(target=work, args=(seed, stop, done, errors)) for seed in range(options.threads)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + options.seconds
    while not stop.wait(min(60.0, max(0.0, end - time.monotonic()))) and time.monotonic() < end:
        console.print(f"{dict(done)}, held {mempool.memory_reserved() / MIB:.0f} MiB")
    stop.set()
    for thread in threads:
        thread.join()
    gc.collect()
    leaked = mempool.memory_allocated()
    broken = cpu().check_invariants()
    mempool.trim()
    stats = mempool.memory_stats()
    console.print(
        f"{dict(done)}\nleaked {leaked} bytes, held after trim {mempool.memory_reserved()} bytes, "
        f"moves {stats['num_moves']}, commits {stats['num_device_alloc']}, decommits {stats['num_device_free']}, "
        f"invariants: {broken or 'whole'}"
    )
    for error in errors:
        console.print(f"[bold red]{error!r}[/]")
    return 0 if leaked == 0 and not broken and not errors else 1


if __name__ == "__main__":
    sys.exit(main())
