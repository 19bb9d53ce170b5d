"""The command ``mempool options``: the options of MEMPOOL_CONF and their values."""

from __future__ import annotations

import click
from rich.table import Table

from mempool._device_cpu import cpu_options
from mempool.cli.common import console, format_size, json_option, print_json


@click.command("options")
@json_option
def command(as_json: bool) -> None:
    """List the options that MEMPOOL_CONF takes (key:value,key:value), and what they are set to for the CPU."""
    rows = cpu_options()
    if as_json:
        names = ("key", "type", "meaning", "default", "value")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    table = Table()
    for column in ("key", "default", "value", "meaning"):
        table.add_column(column, no_wrap=column == "key", overflow="fold")
    for key, kind, meaning, default, value in rows:
        texts = [_text(kind, each) for each in (default, value)]
        table.add_row(key, *texts, f"{kind}: {meaning}", style="bold" if default != value else "")
    console().print(table)


def _text(kind: str, value: int | bool | str | None) -> str:
    if value is None:
        return "never" if "never" in kind else "none"
    if isinstance(value, bool):
        return str(value).lower()
    return format_size(value) if isinstance(value, int) and kind.startswith("bytes") else str(value)
