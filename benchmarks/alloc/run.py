"""Times allocation and free by size through c10::Allocator, on mempool beside its peers.

    python -m benchmarks.alloc.run [--repeats N] [--threads 1 2] [--out benchmarks/results]

The loops are C++ and are compiled first (the compiler is `$CXX`, or `c++`). Ends with status 2 if a child failed, also
when mempool did not see every allocation.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from benchmarks.alloc import SIZES
from benchmarks.common import (
    DEFAULT_OUT,
    OURS,
    PEER,
    BenchmarkError,
    Json,
    Spread,
    caption,
    compile_loops,
    environment_facts,
    in_turn,
    paired_ratio,
    progress,
    run_child,
    spread_json,
    table_console,
    write_report,
)
from benchmarks.peers import NAMES, chosen, missing

WORKER = "benchmarks.alloc.worker"

Result = TypeVar("Result")
Measure = Callable[[argparse.Namespace, Sequence[str], Path], Result]  # of the options, the sides, the loops


def size_text(size: int) -> str:
    """A size in bytes as a person writes it."""
    for unit, scale in (("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale and size % scale == 0:
            return f"{size // scale} {unit}"
    return f"{size} B"


def fastest(run: Json, live: int, size: int) -> float:
    """Nanoseconds for a pair in the fastest batch of one process: disturbances of so short a loop only add to it."""
    return min(run["nanoseconds_a_pair"][str(live)][str(size)])  # JSON has made the numbers strings


def summarize(threads: int, runs: dict[str, list[Json]]) -> Json:
    """The figures for one number of threads: spreads over the processes, and every raw number."""
    rows = []
    for live, size in ((live, size) for live, sizes in SIZES.items() for size in sizes):
        pair = {side: [fastest(run, live, size) for run in runs[side]] for side in runs}
        rows.append(
            {
                "live_blocks": live,
                "size_bytes": size,
                "ratio": asdict(paired_ratio(pair[OURS], pair[PEER])),
                "nanoseconds_a_pair": {side: spread_json(pair[side]) for side in runs},
            }
        )
    return {"threads": threads, "rows": rows, "runs": runs}


def table_of(result: Json, facts: Json, repeats: int) -> Table:
    """A table with one row for each size and number of live blocks."""
    title = f"c10::Allocator, {result['threads']} thread(s), ns that a thread waits for an allocation and its free"
    table = Table(title=title, caption=caption(facts, repeats))
    for head in ("size", "live", *result["runs"], f"{OURS}/{PEER}"):
        table.add_column(head, justify="right")
    for row in result["rows"]:
        cells = [Spread(**row["nanoseconds_a_pair"][side]).text(0) for side in result["runs"]]
        table.add_row(size_text(row["size_bytes"]), str(row["live_blocks"]), *cells, Spread(**row["ratio"]).text(2))
    return table


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="processes a side and number of threads")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="a table for each of these numbers")
    parser.add_argument("--pairs", type=int, default=64_000, help="pairs a batch and thread, a multiple of 256")
    parser.add_argument("--batches", type=int, default=7, help="batches a size; the fastest counts")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of alloc.json")
    parser.add_argument(
        "--peers", choices=NAMES, nargs="+", help="these beside default glibc and mempool; default: all"
    )
    options = parser.parse_args(arguments)
    if min(options.repeats, options.pairs, options.batches, *options.threads) < 1:
        parser.error("--repeats, --threads, --pairs and --batches must be at least 1")
    if any(options.pairs % live for live in SIZES):
        parser.error(f"--pairs must be a multiple of the blocks that are live at once: {', '.join(map(str, SIZES))}")
    return options


def measure(options: argparse.Namespace, sides: Sequence[str], loops: Path) -> list[Json]:
    """The summary for each number of threads."""
    results: list[Json] = []
    total = len(options.threads) * len(sides) * options.repeats
    with progress(Console(stderr=True), total) as show:
        for threads in options.threads:
            counts = (f"--threads={threads}", f"--pairs={options.pairs}", f"--batches={options.batches}")

            def run(side: str, threads: int = threads, counts: Sequence[str] = counts) -> Json:
                show(f"{threads} thread(s) on {side}")
                return run_child(WORKER, [f"--loops={loops}", *counts], threads, side)

            results.append(summarize(threads, in_turn(sides, options.repeats, run, lambda: show(""))))
    return results


def on_all_sides(options: argparse.Namespace, console: Console, measure: Measure[Result]) -> Result:
    """What `measure` returns, given the sides that can be run here and the compiled loops."""
    for sentence in missing(options.peers):
        console.print(sentence, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        loops = compile_loops(Path(__file__).with_name("loops.cpp"), Path(folder), ["-lc10"])
        return measure(options, chosen(options.peers), loops)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit status."""
    options = parse(arguments)
    console = table_console()
    facts = {threads: environment_facts(threads) for threads in options.threads}
    try:
        results = on_all_sides(options, console, measure)
    except BenchmarkError as error:
        console.print(f"[bold red]failed:[/] {error}", highlight=False)
        return 2
    settings = {"repeats": options.repeats, "pairs": options.pairs, "batches": options.batches}
    environment = {**facts[options.threads[0]], "threads": options.threads}
    report = {"benchmark": "alloc", "environment": environment, "settings": settings, "results": results}
    path = write_report(options.out, "alloc", report)
    for result in results:
        console.print(table_of(result, facts[result["threads"]], options.repeats))
    console.print(f"written to {path}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
