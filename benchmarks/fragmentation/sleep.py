"""Times sleep and wake of an isolated pool, beside one `madvise(MADV_DONTNEED)` of as many pages in the same process.

    python -m benchmarks.fragmentation.sleep [--bytes N] [--rounds N] [--cycles N] [--out benchmarks/results]

Both sides write to every page before each round. Ends with status 1 if a cycle loses a byte, moves an address, or
leaves contents wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.common import (
    DEFAULT_OUT,
    Json,
    Spread,
    environment_facts,
    paired_ratio,
    progress,
    spread_json,
    table_console,
    write_report,
)

PAGE = 4096
GRANULE = 2 << 20
MADV_DONTNEED, MADV_HUGEPAGE = 4, 14
KEPT_EVERY = 100  # one of this many cycles keeps its contents


def seconds_of(action: Callable[[], object]) -> float:
    """The seconds that one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class PlainPages:
    """Anonymous memory, aligned and advised as mempool's, to time one system call on as many pages."""

    def __init__(self, size: int) -> None:
        """`size`: bytes, a multiple of a granule."""
        import numpy as np

        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        read_write, private_anonymous = 3, 0x22
        raw = libc.mmap(None, size + GRANULE, read_write, private_anonymous, -1, 0)
        self._start = (raw + GRANULE - 1) // GRANULE * GRANULE
        self._size = size
        self._madvise = libc.madvise
        self._madvise(self._start, size, MADV_HUGEPAGE)
        self.bytes: Any = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._start))

    def drop(self) -> None:
        """Gives the pages back; the addresses stay."""
        if self._madvise(self._start, self._size, MADV_DONTNEED) != 0:
            raise OSError(ctypes.get_errno(), "madvise")


def timed_rounds(pool: Any, tensor: Any, plain: PlainPages, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round for madvise, sleep and wake without contents."""
    found: dict[str, list[float]] = {"madvise": [], "sleep": [], "wake": []}
    for _ in range(rounds):
        plain.bytes[::PAGE] = 1
        tensor.numpy()[::PAGE] = 1
        found["madvise"].append(seconds_of(plain.drop))
        found["sleep"].append(seconds_of(lambda: pool.sleep(keep=False)))
        found["wake"].append(seconds_of(pool.wake))
    return found


def cycle(pool: Any, tensor: Any, cycles: int, done: Callable[[str], None]) -> list[str]:
    """Sleeps and wakes `cycles` times; returns a sentence for each fault."""
    import mempool

    wrong: list[str] = []
    address = tensor.data_ptr()
    small = tensor[: 64 * PAGE]
    bool((small == 0).all())  # so that the comparison's own memory is there before the first cycle
    before = mempool.memory_reserved(), mempool.memory_allocated()
    for number in range(cycles):
        keep = number % KEPT_EVERY == 0
        small.fill_(number % 251)
        pool.sleep(keep=keep)
        pool.wake()
        if keep and not bool((small == number % 251).all()):
            wrong.append(f"cycle {number} lost its contents")
        done("")
    after = mempool.memory_reserved(), mempool.memory_allocated()
    if after != before:
        wrong.append(f"reserved and allocated bytes were {before}, are {after}")
    if tensor.data_ptr() != address:
        wrong.append(f"the tensor was at {address:#x}, is at {tensor.data_ptr():#x}")
    return wrong


def measure(options: argparse.Namespace) -> Json:
    """Measures all figures, in this process."""
    import torch

    import mempool

    torch.set_num_threads(1)
    mempool.enable("cpu")
    pool = mempool.MemoryPool("slept", isolated=True)
    with mempool.use_pool(pool):
        tensor = torch.empty(options.bytes, dtype=torch.uint8)
    plain = PlainPages(options.bytes)
    rounds = timed_rounds(pool, tensor, plain, options.rounds)
    with progress(table_console(), options.cycles) as show:
        show("cycles")
        wrong = cycle(pool, tensor, options.cycles, show)
    return {"seconds": rounds, "wrong": wrong}


def table_of(figures: Json, size: int) -> Table:
    """A table with one row for each call."""
    table = Table(title=f"{size >> 20} MiB, every page written before; ms")
    for head in ("call", "ms", "to madvise"):
        table.add_column(head, justify="right")
    seconds = figures["seconds"]
    for name, values in seconds.items():
        ratio = "" if name == "madvise" else Spread(**figures["ratios"][name]).text(3)
        table.add_row(name, Spread.of(values).text(3, scale=1e-3), ratio)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=1 << 30, help="size of the pool, a multiple of 2 MiB")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds")
    parser.add_argument(
        "--cycles", type=int, default=1000, help="sleeps and wakes after which every byte must be there"
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of sleep.json")
    options = parser.parse_args(arguments)
    if options.bytes < GRANULE or options.bytes % GRANULE or min(options.rounds, options.cycles) < 1:
        parser.error("--bytes must be a positive multiple of 2 MiB; --rounds and --cycles at least 1")
    facts = environment_facts(1)
    figures = measure(options)
    seconds = figures["seconds"]
    figures["ratios"] = {name: asdict(paired_ratio(seconds[name], seconds["madvise"])) for name in ("sleep", "wake")}
    figures["spreads_seconds"] = {name: spread_json(values) for name, values in seconds.items()}
    path = write_report(options.out, "sleep", {"benchmark": "sleep", "environment": facts, **figures})
    console = table_console()
    console.print(table_of(figures, options.bytes))
    for sentence in figures["wrong"]:
        console.print(f"[bold red]wrong:[/] {sentence}", highlight=False)
    console.print(f"{options.cycles} cycles; written to {path}", highlight=False)
    return 1 if figures["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
