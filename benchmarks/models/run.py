"""Measures whole model steps on mempool beside its peers.

    python -m benchmarks.models.run [--repeats N] [--only NAME] [--threads 1] [--out benchmarks/results]

Ends with status 1 if the results of two allocators differ in a bit, 2 if a child failed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common import (
    DEFAULT_OUT,
    OURS,
    PEER,
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
from benchmarks.models.workloads import NAMES, Workload, workloads
from benchmarks.peers import NAMES as PEER_NAMES
from benchmarks.peers import chosen, missing

MIB = 2**20
# At any time a step may touch one or two fresh pages of the interpreter's heap; more faults than these are of tensors.
STRAY_FAULTS = 4
LEAST_PAIRS = 15  # for a bound
STUDENT_T = 1.761  # one-sided 95%, 14 degrees of freedom: a little too wide with more
WORKER = "benchmarks.models.worker"


def step_seconds(run: Json) -> float:
    """The median of the seconds of the timed steps of one process."""
    return statistics.median(step["seconds"] for step in run["steps"])


def step_faults(run: Json) -> float:
    """The mean of the page faults of the timed steps of one process: a single step that faults shows in it."""
    return statistics.fmean(step["minor_faults"] + step["major_faults"] for step in run["steps"])


def warmup_needed(run: Json) -> int:
    """The number of steps of one process, warm-up included, up to the last one that had page faults."""
    faults = [step["minor_faults"] + step["major_faults"] for step in run["warmup"] + run["steps"]]
    return max((index + 1 for index, count in enumerate(faults) if count > STRAY_FAULTS), default=0)


def floor_of(runs: dict[str, list[Json]], peer_seconds: Sequence[float]) -> Json | None:
    """The step without allocation, where a workload has one, measured in mempool's processes, on the same pages."""
    if any(run["floor_seconds"] is None for run in runs[OURS]):
        return None
    seconds = [statistics.median(run["floor_seconds"]) for run in runs[OURS]]
    return {
        "seconds_a_step": spread_json(seconds),
        "time_ratio": asdict(paired_ratio(seconds, peer_seconds)),
    }


def fastest_peer(seconds: dict[str, list[float]]) -> Json:
    """mempool to the other allocator with the smallest median, over the processes that ran next to each other, with
    the one-sided 95% bound of its mean (Student's t): "slower by less than" is that bound."""
    others = {side: statistics.median(values) for side, values in seconds.items() if side != OURS}
    name = min(others, key=lambda side: others[side])
    ratios = [mine / theirs for mine, theirs in zip(seconds[OURS], seconds[name], strict=True)]
    bound = None
    if len(ratios) >= LEAST_PAIRS:
        bound = statistics.fmean(ratios) + STUDENT_T * statistics.stdev(ratios) / len(ratios) ** 0.5
    return {"peer": name, "ratio": asdict(Spread.of(ratios)), "upper_bound_95": bound}


def summarize(name: str, runs: dict[str, list[Json]]) -> Json:
    """The figures of one workload: a spread for each side, the ratio over pairs, bit-equality, and every raw number."""
    seconds = {side: [step_seconds(run) for run in runs[side]] for side in runs}
    digests = {tuple(run["digests"]) for side in runs for run in runs[side]}
    sides = {
        side: {
            "seconds_a_step": spread_json(seconds[side]),
            "page_faults_a_step": spread_json([step_faults(run) for run in runs[side]]),
            "warmup_steps_needed": spread_json([warmup_needed(run) for run in runs[side]]),
            "rss_peak_growth_bytes": spread_json([run["rss_peak_growth_bytes"] for run in runs[side]]),
        }
        for side in runs
    }
    return {
        "workload": name,
        "time_ratio": {side: asdict(paired_ratio(seconds[side], seconds[PEER])) for side in runs},
        "to_fastest_peer": fastest_peer(seconds),
        "results_equal": len(digests) == 1,
        "without_allocation": floor_of(runs, seconds[PEER]),
        "sides": sides,
        "runs": runs,
    }


def table_of(results: Sequence[Json], facts: Json, repeats: int) -> Table:
    """A row for each allocator, for the step without allocation if there is one, for mempool to the fastest peer."""
    table = Table(title=f"Model steps, {facts['threads']} thread(s)", caption=caption(facts, repeats))
    table.add_column("workload")
    table.add_column("allocator")
    for head in ("ms a step", "time ratio", "page faults a step", "peak growth MiB", "results"):
        table.add_column(head, justify="right")
    for result in results:
        for side in result["runs"]:
            figures = result["sides"][side]
            ours = side == OURS
            equal = "equal" if result["results_equal"] else "[bold red]DIFFER[/]"
            table.add_row(
                result["workload"] if side == PEER else "",
                side,
                Spread(**figures["seconds_a_step"]).text(1, scale=1e-3),
                Spread(**result["time_ratio"][side]).text(3) if side != PEER else "",
                Spread(**figures["page_faults_a_step"]).text(1),
                Spread(**figures["rss_peak_growth_bytes"]).text(0, scale=MIB),
                equal if ours else "",
            )
        if floor := result["without_allocation"]:
            seconds, ratio = Spread(**floor["seconds_a_step"]), Spread(**floor["time_ratio"])
            table.add_row("", "(no allocation)", seconds.text(1, scale=1e-3), ratio.text(3))
        best = result["to_fastest_peer"]
        bound = f", 95% below {best['upper_bound_95']:.3f}" if best["upper_bound_95"] else ""
        table.add_row("", f"mempool/{best['peer']}", "", Spread(**best["ratio"]).text(3) + bound)
        table.add_section()
    return table


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="processes a side")
    parser.add_argument("--steps", type=int, help="timed steps a process; default: the workload's own number")
    parser.add_argument("--warmup", type=int, help="steps before them; default: the workload's own number")
    parser.add_argument("--only", choices=NAMES, nargs="+", action="extend", help="these workloads")
    parser.add_argument("--small", action="store_true", help="sizes for tests: says nothing about speed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", choices=PEER_NAMES, nargs="+", help="these beside default glibc and mempool")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of models.json")
    options = parser.parse_args(arguments)
    if min(options.repeats, options.threads, *(n for n in (options.steps,) if n is not None)) < 1:
        parser.error("--repeats, --threads and --steps must be at least 1")
    if options.warmup is not None and options.warmup < 0:
        parser.error("--warmup must not be negative")
    return options


def child_arguments(options: argparse.Namespace, workload: Workload) -> list[str]:
    """The command line of one child."""
    steps = workload.steps if options.steps is None else options.steps
    warmup = workload.warmup if options.warmup is None else options.warmup
    counts = [f"--steps={steps}", f"--warmup={warmup}", f"--threads={options.threads}"]
    size = ["--small"] if options.small else []
    return [f"--workload={workload.name}", *counts, *size]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit status."""
    options = parse(arguments)
    console = table_console()
    facts = environment_facts(options.threads)
    sides = chosen(options.peers)
    for sentence in missing(options.peers):
        console.print(sentence, highlight=False)
    wanted = [each for each in workloads(options.small) if not options.only or each.name in options.only]
    results: list[Json] = []
    try:
        with progress(Console(stderr=True), len(wanted) * len(sides) * options.repeats) as show:
            for workload in wanted:

                def run(side: str, workload: Workload = workload) -> Json:
                    show(f"{workload.name} on {side}")
                    return run_child(WORKER, child_arguments(options, workload), options.threads, side)

                results.append(summarize(workload.name, in_turn(sides, options.repeats, run, lambda: show(""))))
    except BenchmarkError as error:
        console.print(f"[bold red]failed:[/] {error}", highlight=False)
        return 2
    settings = {"repeats": options.repeats, "steps": options.steps, "warmup": options.warmup, "small": options.small}
    report = {"benchmark": "models", "environment": facts, "settings": settings, "results": results}
    path = write_report(options.out, "models", report)
    console.print(table_of(results, facts, options.repeats))
    console.print(f"written to {path}", highlight=False)
    return 0 if all(result["results_equal"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
