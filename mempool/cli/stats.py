"""The command ``mempool stats``: a summary of a saved snapshot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

import mempool
from mempool._text import printable
from mempool.cli.common import console, format_size, json_option, print_json, reading
from mempool.observe.history import Peak, find_peaks, place_of

Groups = dict[str, list[int]]  # sizes of blocks, by name


@click.command("stats")
@click.argument("snapshot", type=click.Path(path_type=Path))
@click.option("--top", default=10, show_default=True, type=click.IntRange(min=0), help="Places in the code to list.")
@json_option
def command(snapshot: Path, top: int, as_json: bool) -> None:
    """Print a summary of a saved SNAPSHOT: bytes by pool, and where the live blocks were made.

    A snapshot with a history (`mempool run --snapshot`, `record_history`) also tells what was live at the peak of the
    events that it has.
    """
    with reading(snapshot):
        loaded = mempool.load_snapshot(snapshot)
    live = [b for s in loaded["segments"] for b in s["blocks"] if str(b["state"]).startswith("active")]
    held = sum(s["total_size"] for s in loaded["segments"])
    peaks = find_peaks(loaded)
    if as_json:
        print_json(
            {
                "segments": len(loaded["segments"]),
                "held_bytes": held,
                "live": _as_json(live, top),
                "peaks": [{"device": p.device, "bytes": p.nbytes, **_as_json(p.blocks, top)} for p in peaks],
            }
        )
        return
    to = console()
    used = sum(b["size"] for b in live)
    to.print(
        f"{len(loaded['segments'])} backed ranges hold {format_size(held)}; {len(live)} live blocks have "
        f"{format_size(used)} ({used / held:.1%} of what is held)"
        if held
        else "nothing is held"
    )
    by_pool = _by_pool(live)
    _print_groups(to, "live bytes by pool", "pool", by_pool, len(by_pool))
    _print_groups(to, f"live bytes by place (top {top})", "place", _by_place(live), top)
    for peak in peaks:
        _print_peak(to, peak, top, len(peaks) > 1)


def _print_peak(to: Console, peak: Peak, top: int, several: bool) -> None:
    device = f" of device {peak.device}" if several else ""
    to.print(f"the peak{device} among the recorded events: {format_size(peak.nbytes)} in {len(peak.blocks)} blocks")
    if peak.dropped:
        to.print(f"({peak.dropped:,} earlier events were not kept: the option history_events says how many are)")
    _print_groups(to, f"bytes at that peak by place (top {top})", "place", _by_place(peak.blocks), top)


def _by_pool(blocks: Iterable[dict[str, Any]]) -> Groups:
    groups: Groups = defaultdict(list)
    for block in blocks:
        groups[str(block.get("pool", "default"))].append(block["size"])
    return groups


def _by_place(blocks: Iterable[dict[str, Any]]) -> Groups:
    groups: Groups = defaultdict(list)
    for block in blocks:
        place = place_of(block.get("frames"))
        if place is not None:
            groups[place].append(block["size"])
    return groups


def _largest(groups: Groups, most: int) -> list[tuple[str, list[int]]]:
    return sorted(groups.items(), key=lambda item: -sum(item[1]))[:most]


def _as_json(blocks: list[dict[str, Any]], top: int) -> dict[str, Any]:
    def rows(groups: Groups, most: int) -> list[dict[str, Any]]:
        return [
            {"name": name, "blocks": len(sizes), "bytes": sum(sizes), "largest": max(sizes)}
            for name, sizes in _largest(groups, most)
        ]

    by_pool = _by_pool(blocks)
    return {
        "blocks": len(blocks),
        "live_bytes": sum(b["size"] for b in blocks),
        "by_pool": rows(by_pool, len(by_pool)),
        "by_place": rows(_by_place(blocks), top),
    }


def _print_groups(to: Console, title: str, column: str, groups: Groups, most: int) -> None:
    if not groups:
        return
    table = Table(title=title, title_justify="left")
    table.add_column(column, overflow="fold")
    for heading in ("blocks", "bytes", "largest"):
        table.add_column(heading, justify="right")
    for name, sizes in _largest(groups, most):
        name = printable(name).replace("\n", "\\n")
        table.add_row(name, str(len(sizes)), format_size(sum(sizes)), format_size(max(sizes)))
    to.print(table)
