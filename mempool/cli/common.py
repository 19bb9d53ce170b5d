"""Helpers that the commands share: ``--json``, the console, progress, and errors of reading files."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mempool import _core
from mempool._text import printable

format_size = _core.format_bytes

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def console() -> Console:
    """A console for standard output that takes square brackets in names literally."""
    return Console(markup=False, emoji=False)


def print_json(value: Any) -> None:
    """Prints one JSON document to standard output. Sizes are bytes."""
    click.echo(json.dumps(value, indent=1))


def shown(path: str | os.PathLike[str]) -> str:
    """A file's name as a terminal can print it."""
    return printable(os.fspath(path)).replace("\n", "\\n")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """A context that turns an OSError into the error that this file cannot be read."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"cannot read '{path}': {error.strerror or error}.") from error


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[float, str], None]]:
    """A progress bar on standard error with an estimate of the time left, where that is a terminal.

    Yields a function of the share that is done, 0 to 1, and of the name of the next step (``""``: the name stays).
    """
    if not sys.stderr.isatty():
        yield lambda done, what: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True, markup=False), transient=True) as bar:
        task = bar.add_task(title, total=1.0)

        def advance(done: float, what: str) -> None:
            description = {"description": f"{title}: {what}"} if what else {}
            bar.update(task, completed=done, **description)  # type: ignore[arg-type]

        yield advance
