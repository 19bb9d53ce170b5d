"""The command ``mempool replay``: the memory and time that a trace takes."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import click
from rich.table import Table

import mempool
from mempool.cli.common import console, format_size, json_option, print_json, progress, reading, shown


@click.command("replay")
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--backend", default="fake", show_default=True, help="'fake' (addresses alone) or 'host' (real memory).")
@click.option(
    "--device", default="cpu", show_default=True, help="'cpu', 'cuda' (as a device with streams would), or 'pinned'."
)
@click.option("--capacity", help="Bytes that the device has: '16GiB'.")
@click.option("--scale", default="1", show_default=True, help="Multiply each size: '0.5', '1/16'.")
@click.option("--conf", default="", help="Options, 'key:value,key:value' (`mempool options` lists them).")
@click.option("--threads", default=1, show_default=True, help="Threads that play the events, 64 in a row each.")
@json_option
def command(
    trace: Path,
    backend: str,
    device: str,
    capacity: str | None,
    scale: str,
    conf: str,
    threads: int,
    as_json: bool,
) -> None:
    """Replay a TRACE of allocations (CSV, plain or gzipped) and print what it took."""
    factor = _number(scale)
    with progress("replay") as advance, reading(trace):
        result = mempool.replay(
            trace,
            device,
            backend=backend,
            scale=factor,
            conf=conf,
            capacity=capacity,
            progress=lambda done: advance(done, ""),
            threads=threads,
        )
    if as_json:
        print_json({**dataclasses.asdict(result), "map_calls": result.map_calls, "ns_per_event": result.ns_per_event})
        return
    table = Table(title=f"replay of {shown(trace.name)}", title_justify="left", show_header=False)
    for title, value in (
        ("events", f"{result.events:,}"),
        ("peak live (requested)", format_size(result.peak_live_bytes)),
        ("peak held", f"{format_size(result.peak_held_bytes)} ({result.held_per_live:.4f} of live)"),
        ("commits, decommits", f"{result.commits:,}, {result.decommits:,}"),
        ("moves", f"{result.moves:,} ({format_size(result.moved_bytes)})"),
        ("map calls in the last half", f"{result.map_calls_in_last_half:,}"),
        ("CPU time an event", f"{result.ns_per_event:.0f} ns"),
    ):
        table.add_row(title, value)
    console().print(table)


def _number(scale: str) -> float:
    try:
        over, _, under = scale.partition("/")
        return float(Fraction(int(over), int(under))) if under else float(scale)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise click.BadParameter(f"'{scale}' is not a number.", param_hint="--scale") from error
