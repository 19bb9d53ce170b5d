"""What the command line prints about memory."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mempool import _core
from mempool.stats import memory_stats
from mempool.trace import ReplayReport

_size = _core.format_bytes


def print_run_summary(console: Console, snapshot: Path | None) -> None:
    """The figures of this process's CPU memory."""
    stats = memory_stats("cpu")
    table = Table(title="mempool: CPU memory of this run", title_justify="left")
    table.add_column("")
    for metric in ("now", "peak", "total allocated"):
        table.add_column(metric, justify="right")
    for title, key in (("allocated", "allocated_bytes.all"), ("held", "reserved_bytes.all")):
        table.add_row(title, *(_size(stats[f"{key}.{m}"]) for m in ("current", "peak", "allocated")))
    table.add_row("blocks", *(str(stats[f"allocation.all.{m}"]) for m in ("current", "peak", "allocated")))
    console.print(table)
    console.print(
        f"out-of-memory errors {stats['num_ooms']}, retries {stats['num_alloc_retries']}, "
        f"commits {stats['num_device_alloc']}, decommits {stats['num_device_free']}"
    )
    if snapshot is not None:
        console.print(f"snapshot: {snapshot}", soft_wrap=True)


def print_replay(console: Console, trace: Path, result: ReplayReport) -> None:
    table = Table(title=f"replay of {trace.name}", title_justify="left", show_header=False)
    for title, value in (
        ("events", f"{result.events:,}"),
        ("peak live (requested)", _size(result.peak_live_bytes)),
        ("peak held", f"{_size(result.peak_held_bytes)} ({result.held_per_live:.4f} of live)"),
        ("commits, decommits", f"{result.commits:,}, {result.decommits:,}"),
        ("moves", f"{result.moves:,} ({_size(result.moved_bytes)})"),
        ("map calls in the last half", f"{result.map_calls_in_last_half:,}"),
        ("CPU time an event", f"{result.ns_per_event:.0f} ns"),
    ):
        table.add_row(title, value)
    console.print(table)


def print_options(console: Console, options: list[tuple[str, str, str]]) -> None:
    table = Table()
    for column in ("key", "type", "meaning"):
        table.add_column(column)
    for row in options:
        table.add_row(*row)
    console.print(table)


def print_examination(console: Console, result: dict[str, Any]) -> None:
    """What ``mempool doctor`` has found."""
    facts = Table(title="this machine", title_justify="left", show_header=False)
    for name, value in result["facts"].items():
        if name == "cuda_devices":
            text = "; ".join(f"{d['name']} ({d['capability']}, {_size(d['memory_bytes'])})" for d in value) or "none"
        elif name.endswith("_bytes"):
            text = _size(value)
        elif isinstance(value, list):
            text = ", ".join(value) or "none"
        else:
            text = {None: "-", True: "yes", False: "no"}.get(value, str(value))
        facts.add_row(name.removesuffix("_bytes").replace("_", " "), text)
    console.print(facts)
    checks = Table(title="self-checks", title_justify="left")
    for column in ("device", "check", "", "detail"):
        checks.add_column(column, overflow="fold")
    for check in result["checks"]:
        checks.add_row(check["device"], check["name"], "ok" if check["passed"] else "FAILED", check["detail"])
    console.print(checks)


def print_gpu(console: Console, result: dict[str, Any]) -> None:
    """What ``mempool doctor --gpu`` has measured, or why it has not."""
    if result["problem"] is not None:
        console.print(f"no GPU was examined: {result['problem']}", soft_wrap=True)
        return
    table = Table(title=f"packed layers on {result['device']}", title_justify="left")
    for column in ("layer", "outputs x inputs", "tokens", "ms", "GB/s", "TOP/s", "as on the CPU"):
        table.add_column(column, justify="left" if column == "layer" else "right", overflow="fold")
    for row in result["rows"]:
        times = ["-" if row[name] is None else f"{row[name]:.3g}" for name in ("ms", "gb_per_s", "tera_ops")]
        outcome = {True: "yes", False: "NO", None: ""}[row["exact"]]
        if row["problem"] is not None:
            outcome = f"{outcome} {row['problem']}".strip()
        table.add_row(row["name"], f"{row['outputs']} x {row['inputs']}", str(row["tokens"]), *times, outcome)
    console.print(table)


def print_benchmarks(console: Console, benchmarks: list[dict[str, Any]]) -> None:
    if not benchmarks:
        console.print(
            "no benchmarks: they are in the source folder, and mempool was not installed from one (pip install -e .)"
        )
    for each in benchmarks:
        console.print(
            f"{each['benchmark']} (status {each['status']})\n{each['output']}{each['errors']}", soft_wrap=True
        )


def print_snapshot_summary(console: Console, snapshot: dict[str, Any], top: int) -> None:
    """Bytes by pool, and the places that made most of the live bytes."""
    segments = snapshot["segments"]
    live = [b for s in segments for b in s["blocks"] if str(b["state"]).startswith("active")]
    held = sum(s["total_size"] for s in segments)
    used = sum(b["size"] for b in live)
    console.print(
        f"{len(segments)} backed ranges hold {_size(held)}; {len(live)} live blocks have {_size(used)} "
        f"({used / held:.1%} of what is held)"
        if held
        else "nothing is held"
    )
    by_pool: dict[str, list[int]] = defaultdict(list)
    for block in live:
        by_pool[str(block.get("pool", "default"))].append(block["size"])
    _print_groups(console, "live bytes by pool", "pool", by_pool, len(by_pool))
    by_place: dict[str, list[int]] = defaultdict(list)
    for block in live:
        if block.get("frames"):
            frame = block["frames"][0]
            by_place[f"{frame['filename']}:{frame['line']} {frame['name']}"].append(block["size"])
    if by_place:
        _print_groups(console, f"live bytes by place (top {top})", "place", by_place, top)


def _print_groups(console: Console, title: str, column: str, groups: dict[str, list[int]], most: int) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column(column, overflow="fold")
    for heading in ("blocks", "bytes", "largest"):
        table.add_column(heading, justify="right")
    for name, sizes in sorted(groups.items(), key=lambda item: -sum(item[1]))[:most]:
        table.add_row(name, str(len(sizes)), _size(sum(sizes)), _size(max(sizes)))
    console.print(table)
