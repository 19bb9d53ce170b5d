"""Replays recorded and generated traces, and packing instances, without memory: bytes held, and backend calls.

    python -m benchmarks.fragmentation.traces [--traces DIR] [--packing DIR] [--out benchmarks/results]

No peer runs here: the lower bound of the bytes held is the bytes that are live. Writes a table and ``traces.json``.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from benchmarks.common import DEFAULT_OUT, Json, environment_facts, table_console, write_report
from benchmarks.fragmentation import periodic

if TYPE_CHECKING:
    from mempool import ReplayReport

GRANULE = 2 << 20


def packing_lines(path: Path) -> Iterator[str]:
    """A packing instance as a trace: at each time buffers that end go before others begin. A unit is a granule."""
    with path.open(newline="") as file:
        buffers = [(int(r["lower"]), int(r["upper"]), int(r["size"])) for r in csv.DictReader(file)]
    events = [(lower, 1, index) for index, (lower, _, _) in enumerate(buffers)]
    events += [(upper, 0, index) for index, (_, upper, _) in enumerate(buffers)]
    ids: dict[int, int] = {}
    yield "op,id,bytes\n"
    for _, is_alloc, index in sorted(events):
        if is_alloc:
            ids[index] = len(ids)
            yield f"alloc,{ids[index]},{buffers[index][2] * GRANULE}\n"
        else:
            yield f"free,{ids[index]},\n"


def replay_lines(lines: Iterator[str], conf: str = "") -> Json:
    """Replays a trace that is given line by line."""
    import mempool

    with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        file.writelines(lines)
        file.flush()
        return report_of(mempool.replay(file.name, conf=conf))


def report_of(report: ReplayReport) -> Json:
    """The report of a replay as JSON, with the figures that follow from it."""
    return {**asdict(report), "held_per_live": report.held_per_live, "ns_per_event": report.ns_per_event}


def allocated_bytes(lines: Iterator[str]) -> int:
    """The sum of all allocations of a trace, in bytes."""
    return sum(int(size) for op, _, size in (line.strip().split(",") for line in lines) if op == "alloc")


def packed(path: Path) -> Json:
    """Replays a packing instance; `always_stitching_bytes` would move if each buffer were stitched of free granules."""
    result = replay_lines(packing_lines(path), conf="thread_cache_bytes:0,decay_ms:never")
    result["always_stitching_bytes"] = allocated_bytes(packing_lines(path)) - result["peak_live_bytes"]
    result["moved_share"] = result["moved_bytes"] / max(1, result["always_stitching_bytes"])
    return result


def measure(options: argparse.Namespace) -> dict[str, Json]:
    """The report of every trace by name; of a recorded trace that of the fastest of three replays."""
    import mempool

    results: dict[str, Json] = {}
    for path in sorted(options.traces.glob("*.csv*")) if options.traces else []:
        replays = [report_of(mempool.replay(path)) for _ in range(3)]
        results[path.name.split(".")[0]] = min(replays, key=lambda replay: float(replay["seconds"]))
    for name in periodic.TRACES:
        results[name] = replay_lines(periodic.lines(name))
    for path in sorted(options.packing.glob("*.csv")) if options.packing else []:
        results[f"packing {path.stem}"] = packed(path)
    return results


def table_of(results: dict[str, Json]) -> Table:
    """A table with a row for each trace."""
    table = Table(title="traces on addresses alone")
    table.add_column("trace")
    for head in (
        "events",
        "held / live",
        "commits",
        "moves",
        "moved GiB",
        "calls, last half",
        "ns an event",
        "moved share",
    ):
        table.add_column(head, justify="right")
    for name, r in results.items():
        table.add_row(
            name,
            f"{r['events']:,}",
            f"{r['held_per_live']:.4f}",
            f"{r['commits']:,}",
            f"{r['moves']:,}",
            f"{r['moved_bytes'] / 2**30:,.1f}",
            f"{r['map_calls_in_last_half']:,}",
            f"{r['ns_per_event']:.0f}",
            f"{r['moved_share']:.2f}" if "moved_share" in r else "",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the replays and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, help="folder of recorded traces")
    parser.add_argument("--packing", type=Path, help="folder of packing instances")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of traces.json")
    options = parser.parse_args(arguments)
    results = measure(options)
    console = table_console()
    console.print(table_of(results))
    recorded = [r["held_per_live"] for name, r in results.items() if not name.startswith(("packing", "periodic"))]
    if recorded:
        console.print(f"geometric mean of held / live over the recorded: {statistics.geometric_mean(recorded):.4f}")
    report = {"benchmark": "traces", "environment": environment_facts(1), "results": results}
    console.print(f"written to {write_report(options.out, 'traces', report)}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
