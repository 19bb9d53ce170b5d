"""Measures how much memory an allocator holds for the bytes that are live, when sizes vary.

    python -m benchmarks.fragmentation.run [--repeats N] [--only NAME] [--peers NAME ...] [--out benchmarks/results]

Plays each workload on every peer, each process in turn, and writes a table, ``fragmentation.json`` and a plot. Ends
with status 2 if a child failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common import (
    DEFAULT_OUT,
    OURS,
    BenchmarkError,
    Json,
    Spread,
    caption,
    environment_facts,
    in_turn,
    progress,
    run_child,
    spread_json,
    table_console,
    write_report,
)
from benchmarks.fragmentation.workloads import LONG, WAITS, WORKLOADS
from benchmarks.peers import NAMES, chosen, missing, peer

WORKER = "benchmarks.fragmentation.worker"


def held_per_live(run: Json) -> float:
    """Peak growth of resident memory over peak live bytes; for a workload that waits, what remains over live bytes."""
    if run["workload"] in WAITS:
        return float(run["end_rss_growth_bytes"] / run["end_live_bytes"])
    return float(run["peak_rss_growth_bytes"] / run["peak_live_bytes"])


def summarize(name: str, runs: dict[str, list[Json]]) -> Json:
    """The spreads of one workload for each side, and every raw number."""
    for results in runs.values():
        for run in results:
            run["workload"] = name
    return {
        "workload": name,
        "sides": {
            side: {
                "held_per_live": spread_json([held_per_live(run) for run in results]),
                "faults": spread_json([run["faults"] for run in results]),
                "seconds": spread_json([run["seconds"] for run in results]),
            }
            for side, results in runs.items()
        },
        "runs": runs,
    }


def table_of(results: Sequence[Json], facts: Json, repeats: int) -> Table:
    """A table with a row for each workload and allocator."""
    table = Table(title="resident memory over live bytes", caption=caption(facts, repeats))
    table.add_column("workload")
    table.add_column("allocator")
    for head in ("held / live", "page faults", "seconds"):
        table.add_column(head, justify="right")
    for result in results:
        for index, (side, figures) in enumerate(result["sides"].items()):
            table.add_row(
                "" if index else result["workload"],
                side,
                Spread(**figures["held_per_live"]).text(3),
                Spread(**figures["faults"]).text(0),
                Spread(**figures["seconds"]).text(1),
            )
        table.add_section()
    return table


def plot(results: Sequence[Json], path: Path) -> None:
    """Plots held over live bytes against page faults, a panel for each workload: lower left is better."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(4 * len(results), 3.6), squeeze=False)
    for axis, result in zip(axes[0], results, strict=True):
        for side, figures in result["sides"].items():
            x, y = figures["faults"]["median"] + 1, figures["held_per_live"]["median"]
            axis.scatter(x, y, s=60 if side == OURS else 30, color="tab:red" if side == OURS else "tab:gray")
            axis.annotate(side, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
        axis.set(title=result["workload"], xscale="log", xlabel="page faults", ylabel="held / live")
        axis.axhline(1.0, linewidth=0.5, color="black")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def sides_of(name: str, sides: Sequence[str]) -> list[str]:
    """The allocators that play a workload: all of them, or for a long workload those that keep memory."""
    return [side for side in sides if name not in LONG or side == OURS or peer(side).tuned]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="processes a side")
    parser.add_argument("--only", choices=tuple(WORKLOADS), nargs="+", action="extend", help="these workloads")
    parser.add_argument("--peers", choices=NAMES, nargs="+", help="these beside default glibc and mempool")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of fragmentation.json and .png")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit status."""
    options = parse(arguments)
    console = table_console()
    facts = environment_facts(1)
    sides = chosen(options.peers)
    for sentence in missing(options.peers):
        console.print(sentence, highlight=False)
    names = options.only or list(WORKLOADS)
    results: list[Json] = []
    try:
        total = sum(len(sides_of(name, sides)) for name in names) * options.repeats
        with progress(Console(stderr=True), total) as show:
            for name in names:

                def run(side: str, name: str = name) -> Json:
                    show(f"{name} on {side}")
                    return run_child(WORKER, [f"--workload={name}"], 1, side)

                runs = in_turn(sides_of(name, sides), options.repeats, run, lambda: show(""))
                results.append(summarize(name, runs))
    except BenchmarkError as error:
        console.print(f"[bold red]failed:[/] {error}", highlight=False)
        return 2
    report = {
        "benchmark": "fragmentation",
        "environment": facts,
        "settings": {"repeats": options.repeats},
        "results": results,
    }
    path = write_report(options.out, "fragmentation", report)
    plot(results, options.out / "fragmentation.png")
    console.print(table_of(results, facts, options.repeats))
    console.print(f"written to {path}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
