"""What the demo shows: the table, the checks in words, and the timeline."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from mempool._files import atomic_write
from mempool.demo.model import Embeddings

MIB = 1024.0 * 1024.0
DASH = "\N{EN DASH}"  # between the ends of a range, and for "not counted"

BUSY_CORES = 0.25  # of other work, above which the times are not to be trusted


@dataclass(frozen=True)
class Run:
    """What one worker returned."""

    allocator: str
    result: dict[str, Any]
    embeddings: Embeddings


Result = Mapping[str, Any]  # a worker's JSON
Value = Callable[[Result], float | None]  # None: this allocator does not count it


def _per_request(key: str, factor: float = 1.0) -> Value:
    return lambda result: factor * float(result[key]) / len(result["latencies_ms"])


def _percentile(percent: float) -> Value:
    return lambda result: float(np.percentile(result["latencies_ms"], percent))


def _mib(key: str) -> Value:
    return lambda result: None if result[key] is None else float(result[key]) / MIB


ROWS: list[tuple[str, Value, str]] = [
    ("request, median ms", _percentile(50), ".1f"),
    ("request, p99 ms", _percentile(99), ".0f"),
    ("CPU ms a request", _per_request("cpu_s", 1e3), ".1f"),
    ("page faults a request", _per_request("page_faults"), ",.0f"),
    ("peak RSS, MiB", _mib("peak_resident_bytes"), ".0f"),
    ("RSS after the burst, MiB", _mib("resident_after_bytes"), ".0f"),
    ("peak allocated, MiB", _mib("peak_allocated_bytes"), ".0f"),
    ("peak reserved, MiB", _mib("peak_reserved_bytes"), ".0f"),
]


def machine() -> dict[str, str]:
    """Where the numbers come from, in words."""
    model = platform.processor() or platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    versions = {name: importlib.metadata.version(name) for name in ("mempool", "transformers")}
    return {
        "cpu": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
    }


def table(runs: Sequence[Run], threads: int) -> Table:
    """Each cell is the median over the repeats, with the smallest and the largest in brackets."""
    by_allocator = {name: [run.result for run in runs if run.allocator == name] for name in ("torch", "mempool")}
    repeats = len(by_allocator["torch"])
    where = machine()
    caption = (
        f"mempool {where['mempool']}, torch {where['torch']}, transformers {where['transformers']}, "
        f"Python {where['python']}; serving threads: {threads}, each operator: 1; {where['cores']} cores, "
        f"{where['cpu']}. Median of {repeats} repeats (smallest{DASH}largest); ratio: mempool to torch; the allocators "
        f"in turn, each run a new process; the warm-up is not counted. Peak RSS includes loading the model. The "
        f"weights count in RSS alone: safetensors maps them past every allocator."
    )
    busy = max(float(run.result["other_cores"]) for run in runs)
    if busy > BUSY_CORES:
        caption += f" [yellow]Other processes kept up to {busy:.1f} cores busy: the times say little here.[/]"
    result = Table(title="The same requests, two allocators", caption=caption, box=box.SIMPLE_HEAD, min_width=80)
    result.add_column("", no_wrap=True)
    for header in ("torch's own", "mempool", "ratio"):
        result.add_column(header, justify="right")
    for label, value, form in ROWS:
        ours = [value(each) for each in by_allocator["mempool"]]
        theirs = [value(each) for each in by_allocator["torch"]]
        result.add_row(label, _cell(theirs, form), _cell(ours, form), _ratio(ours, theirs))
    # A condition of the measurement and no result, so it has no ratio.
    others = ([float(each["other_cores"]) for each in by_allocator[name]] for name in ("torch", "mempool"))
    result.add_row("cores others kept busy", *(_cell(values, ".1f") for values in others), "")
    return result


def _cell(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return DASH
    return f"{statistics.median(known):{form}} ({min(known):{form}}{DASH}{max(known):{form}})"


def _ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> str:
    a = [value for value in ours if value is not None]
    b = [value for value in theirs if value is not None]
    if not a or not b or statistics.median(b) == 0:
        return DASH
    ratio = statistics.median(a) / statistics.median(b)
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def print_equality(console: Console, difference: float, shape: tuple[int, ...]) -> None:
    """Say whether the allocators computed the same."""
    if difference == 0.0:
        console.print(f"[green]✓[/] All {shape[0]} embeddings of {shape[1]} floats are bit-equal in every run.")
    else:
        console.print(f"[red]✗[/] The embeddings differ between the runs, by at most {difference:.3g}.")


def print_isolation(console: Console, isolation: Result) -> bool:
    """The over-limit request and its neighbours; True if every promise was kept."""
    limit, peak = isolation["limit_bytes"] / MIB, isolation["small_peak_bytes"] / MIB
    message = isolation["message"].partition("\n")[0]  # behind it, for programs, come the fields of oom_info
    lines = [
        f"A small request peaks at {peak:.2f} MiB, so pool tenant-a gets a limit of {limit:.2f} MiB.",
        f"{_mark(isolation['refused'])} tenant-a, a large request: refused after {isolation['failed_ms']:.1f} ms",
        f"    [dim]{escape(message)}[/]",
        f"    [dim]oom_info: {escape(', '.join(f'{k}={v}' for k, v in isolation['info'].items()))}[/]",
        f"{_mark(isolation['used_after_bytes'] == 0)} tenant-a then holds {isolation['used_after_bytes']} bytes",
        f"{_mark(isolation['overlapped'] and isolation['other_right'])} tenant-b, the same request at the same time: "
        f"served in {isolation['other_ms']:.0f} ms, bit-equal to running alone",
        f"{_mark(isolation['next_right'])} tenant-a, the next small request: served, bit-equal",
    ]
    console.print(Panel("\n".join(lines), title="A request over its limit fails alone", title_align="left"))
    return bool(isolation["held"])


def _mark(good: bool) -> str:
    return "[green]✓[/]" if good else "[red]✗ not as promised:[/]"


def print_files(console: Console, files: Mapping[str, Path]) -> None:
    notes = {
        "timeline": "allocated, reserved and resident memory over the last burst of each",
        "snapshot": "open it with `mempool stats`, or at https://pytorch.org/memory_viz",
        "results": "every number behind the table and the plot",
    }
    for name, path in files.items():
        console.print(f"{name:9} {path.resolve()}  [dim]{notes[name]}[/]", soft_wrap=True, highlight=False)


def write_timeline(runs: Sequence[Run], path: Path) -> Path:
    """A PNG of the last burst of each allocator, MiB over seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    last = {run.allocator: run.result["timeline"] for run in runs}
    ours, theirs = last["mempool"], last["torch"]
    seconds = np.array(ours["seconds"])
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 7), sharex=True, layout="constrained")
    allocated, reserved = np.array(ours["allocated"]) / MIB, np.array(ours["reserved"]) / MIB
    top.fill_between(seconds, allocated, color="tab:blue", alpha=0.25, linewidth=0)
    top.plot(seconds, allocated, color="tab:blue", linewidth=0.8, label="allocated (bytes in tensors)")
    top.plot(seconds, reserved, color="tab:orange", linewidth=1.4, label="reserved (held from the system)")
    top.set_title("mempool: bytes allocated and reserved during the burst")
    bottom.plot(
        np.array(theirs["seconds"]),
        np.array(theirs["resident"]) / MIB,
        color="tab:gray",
        linewidth=0.9,
        label="process with torch's own allocator",
    )
    bottom.plot(
        seconds, np.array(ours["resident"]) / MIB, color="tab:green", linewidth=1.4, label="process with mempool"
    )
    bottom.set_title("Resident memory (RSS) of the whole process, the same requests")
    bottom.set_xlabel("time since the start of the burst, s")
    for axes in (top, bottom):
        axes.set_ylabel("MiB")
        axes.set_ylim(0, axes.get_ylim()[1] * 1.2)  # room for the legend above the lines
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", ncols=2)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=120, format="png")
    plt.close(figure)
    return path
