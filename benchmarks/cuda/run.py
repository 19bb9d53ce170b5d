"""Compares mempool's CUDA allocator with torch's native one, default and with expandable segments, on the stand-in.

    python -m benchmarks.cuda.run [--traces DIR] [--only replay pairs offload train] [--out benchmarks/results]

Run it with the Python that has torch's CUDA build and mempool, after `make standin`. All figures of a row are from one
run, in which the sides take turns. No GPU takes part: the benchmark shows the number of driver calls, the memory held,
and the time of the allocators themselves, but not the time of a driver or a kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common import (
    DEFAULT_OUT,
    ROOT,
    BenchmarkError,
    Json,
    compile_loops,
    environment_facts,
    table_console,
    write_report,
)
from benchmarks.cuda import SIDES

TASKS = ("replay", "pairs", "offload", "train")


def ask(loops: Path, side: str, *task: str) -> Json:
    """Runs a worker and returns its JSON."""
    command = [sys.executable, "-m", "benchmarks.cuda.worker", "--side", side, "--loops", str(loops), *task]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-4000:]}")
    answer: Json = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def replay(loops: Path, traces: Sequence[Path], console: Console) -> Json:
    table = Table(title="traces", title_justify="left")
    for column in (
        "trace",
        "allocator",
        "reserved / live",
        "smallest device / live",
        "calls",
        "calls at 1.1 x",
        "ns an event",
    ):
        table.add_column(column, justify="left" if column in ("trace", "allocator") else "right")
    out: Json = {}
    for path in traces:
        rows: Json = {}
        for side in SIDES:
            row = ask(loops, side, "replay", str(path))
            row.update(ask(loops, side, "smallest", str(path)))
            tight = int(1.1 * row["smallest_bytes"])
            row["at_1_1"] = ask(loops, side, "--capacity", str(tight), "replay", str(path))
            rows[side] = row
            table.add_row(
                path.name.split(".")[0] if side == SIDES[0] else "",
                side,
                f"{row['reserved_per_live']:.4f}",
                f"{row['smallest_per_live']:.4f}",
                str(row["calls"]),
                str(row["at_1_1"].get("calls", "fails")),
                f"{row['ns_per_event']:.0f}",
            )
        out[path.name] = rows
    for side in SIDES:
        table.add_row(
            "geometric mean" if side == SIDES[0] else "",
            side,
            *(
                f"{statistics.geometric_mean([rows[side][key] for rows in out.values()]):.4f}"
                for key in ("reserved_per_live", "smallest_per_live")
            ),
        )
    console.print(table)
    return out


def pairs(loops: Path, console: Console) -> Json:
    out: Json = {side: [ask(loops, side, "pairs") for _ in range(2)] for side in SIDES}
    table = Table(title="a cached pair, ns (the faster of two processes)", title_justify="left")
    for column in ("bytes", *(f"{side}, {n}" for side in SIDES for n in ("1 thread", "2 threads"))):
        table.add_column(column, justify="right")
    for size in out[SIDES[0]][0]:
        best = [
            f"{min(run[size][key] for run in out[side]):.0f}"
            for side in SIDES
            for key in ("one_thread_ns", "two_threads_ns")
        ]
        table.add_row(size, *best)
    console.print(table)
    return out


def one_row_each(loops: Path, console: Console, task: str, title: str, shown: dict[str, str]) -> Json:
    out: Json = {side: ask(loops, side, task) for side in SIDES}
    table = Table(title=title, title_justify="left")
    table.add_column("allocator")
    for heading in shown.values():
        table.add_column(heading, justify="right")
    for side in SIDES:
        values = [out[side][key] for key in shown]
        table.add_row(side, *(f"{value:.4f}" if isinstance(value, float) else str(value) for value in values))
    console.print(table)
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "traces")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args(arguments)
    console = table_console()
    results: Json = {"facts": environment_facts(1), "device": "stand-in: no GPU"}
    try:
        with tempfile.TemporaryDirectory() as folder:
            headers = os.environ.get(
                "CUDA_INCLUDE", str(ROOT / "build" / "cuda_toolkit" / "nvidia" / "cu13" / "include")
            )
            source = Path(__file__).with_name("loops.cpp")
            loops = compile_loops(source, Path(folder), ["-lc10", "-lc10_cuda"], headers)
            if "replay" in options.only:
                traces = sorted(options.traces.glob("*.csv.gz"))
                if not traces:
                    console.print(f"no traces in {options.traces}")
                else:
                    results["replay"] = replay(loops, traces, console)
            if "pairs" in options.only:
                results["pairs"] = pairs(loops, console)
            if "offload" in options.only:
                shown = {"completes": "completes", "reserved_per_live": "reserved / live", "calls": "calls"}
                title = "offloading while streams lag, on 1.2 x live"
                results["offload"] = one_row_each(loops, console, "offload", title, shown)
            if "train" in options.only:
                shown = {
                    "peak_allocated_bytes": "peak allocated",
                    "reserved_per_allocated": "reserved / allocated",
                    "calls": "calls",
                    "calls_in_last_10_steps": "calls in the last 10 steps",
                }
                title = "a GPT of 124M parameters, 50 steps of varying length"
                results["train"] = one_row_each(loops, console, "train", title, shown)
    except BenchmarkError as error:
        console.print(f"error: {error}", soft_wrap=True)
        return 2
    console.print(f"written: {write_report(options.out, 'cuda', results)}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
