"""Times threads that each have 256 blocks live, of 32 KiB to 1 MiB, on mempool beside its peers.

    python -m benchmarks.alloc.scaling [--repeats N] [--threads 1 2 4 8] [--out benchmarks/results]

Beyond the ratio to the fastest peer it says how two threads scale beside a loop that shares nothing, and how often a
pair of an allocation and a free takes the lock that mempool's threads share. Ends with status 2 if a child failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.alloc import MANY_LIVE
from benchmarks.alloc.run import WORKER, fastest, on_all_sides, size_text
from benchmarks.common import (
    DEFAULT_OUT,
    OURS,
    BenchmarkError,
    Json,
    Spread,
    caption,
    environment_facts,
    in_turn,
    paired_ratio,
    progress,
    run_child,
    spread_json,
    table_console,
    write_report,
)
from benchmarks.peers import NAMES

(LIVE,) = (live for live in MANY_LIVE if live)
Runs = Mapping[str, list[Json]]  # of each side, one for each repeat


def scaling(one: Sequence[Json], two: Sequence[Json], live: int, size: int) -> list[float]:
    """How many times as much two threads do as one, in each pair of neighbouring processes."""
    return [2 * fastest(a, live, size) / fastest(b, live, size) for a, b in zip(one, two, strict=True)]


def row_of(by_threads: Mapping[int, Runs], threads: int, size: int) -> Json:
    """The figures of one number of threads and one size."""
    runs = by_threads[threads]
    pair = {side: [fastest(run, LIVE, size) for run in runs[side]] for side in runs}
    best = min((side for side in pair if side != OURS), key=lambda side: Spread.of(pair[side]).median)
    row: Json = {
        "threads": threads,
        "size_bytes": size,
        "nanoseconds_a_pair": {side: spread_json(pair[side]) for side in pair},
        "fastest_peer": best,
        "ratio": asdict(paired_ratio(pair[OURS], pair[best])),
    }
    if threads == 2 and 1 in by_threads:
        alone = scaling(by_threads[1][OURS], runs[OURS], 0, 0)
        ours = scaling(by_threads[1][OURS], runs[OURS], LIVE, size)
        row["scaling_share"] = asdict(paired_ratio(ours, alone))
    return row


def table_of(rows: Sequence[Json], by_threads: Mapping[int, Runs], facts: Json, repeats: int) -> Table:
    """A row for each number of threads and size."""
    title = f"{LIVE} blocks live in each thread, ns that a thread waits for an allocation and its free"
    table = Table(title=title, caption=caption(facts, repeats))
    sides = list(next(iter(by_threads.values())))
    for head in ("threads", "size", *sides, f"{OURS}/fastest peer", "scaling / of nothing shared"):
        table.add_column(head, justify="right")
    for row in rows:
        cells = [Spread(**row["nanoseconds_a_pair"][side]).text(0) for side in sides]
        share = Spread(**row["scaling_share"]).text(2) if "scaling_share" in row else ""
        ratio = f"{Spread(**row['ratio']).text(2)} {row['fastest_peer']}"
        table.add_row(str(row["threads"]), size_text(row["size_bytes"]), *cells, ratio, share)
    return table


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="processes a side and number of threads")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4, 8], help="these numbers of threads")
    parser.add_argument("--pairs", type=int, default=25_600, help=f"pairs a batch and thread, a multiple of {LIVE}")
    parser.add_argument("--batches", type=int, default=9, help="batches a size; the fastest counts")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of scaling.json")
    parser.add_argument("--peers", choices=NAMES, nargs="+", default=["glibc", "tcmalloc", "mimalloc"])
    options = parser.parse_args(arguments)
    if min(options.repeats, options.pairs, options.batches, *options.threads) < 1 or options.pairs % LIVE:
        parser.error(f"--repeats, --threads, --pairs and --batches are at least 1, --pairs a multiple of {LIVE}")
    return options


def measure(options: argparse.Namespace, sides: Sequence[str], loops: Path) -> dict[int, Runs]:
    """The runs of each number of threads. Those take turns, too, as their figures are compared."""
    turns = {f"{threads} {side}": (threads, side) for threads in options.threads for side in sides}
    with progress(Console(stderr=True), len(turns) * options.repeats) as show:

        def run(turn: str) -> Json:
            threads, side = turns[turn]
            show(f"{threads} thread(s) on {side}")
            counts = (f"--threads={threads}", f"--pairs={options.pairs}", f"--batches={options.batches}", "--many")
            return run_child(WORKER, [f"--loops={loops}", *counts], threads, side)

        found = in_turn(list(turns), options.repeats, run, lambda: show(""))
    return {threads: {side: found[f"{threads} {side}"] for side in sides} for threads in options.threads}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit status."""
    options = parse(arguments)
    console = table_console()
    facts = environment_facts(max(options.threads))
    try:
        by_threads = on_all_sides(options, console, measure)
    except BenchmarkError as error:
        console.print(f"[bold red]failed:[/] {error}", highlight=False)
        return 2
    rows = [row_of(by_threads, threads, size) for threads in options.threads for size in MANY_LIVE[LIVE]]
    locks = {
        threads: {name: spread_json([run["a_pair"][name] for run in runs[OURS]]) for name in ("locks", "lock_waits")}
        for threads, runs in by_threads.items()
    }
    settings = {"repeats": options.repeats, "pairs": options.pairs, "batches": options.batches}
    report = {"benchmark": "scaling", "environment": facts, "settings": settings, "rows": rows, "locks_a_pair": locks}
    path = write_report(options.out, "scaling", {**report, "runs": by_threads})
    console.print(table_of(rows, by_threads, facts, options.repeats))
    for threads, counts in locks.items():
        taken, waits = (Spread(**counts[name]).text(5) for name in ("locks", "lock_waits"))
        console.print(f"{threads} thread(s): the arena's lock was taken {taken} times a pair, and awaited {waits}.")
    console.print(f"written to {path}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
