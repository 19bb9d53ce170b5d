"""The command ``mempool demo``: a service on torch's own allocator beside the same on mempool."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mempool.cli.common import json_option


@click.command("demo")
@click.option(
    "--out",
    default="out/demo",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the snapshot, the timeline and the results (JSON).",
)
@click.option("--requests", default=120, show_default=True, type=click.IntRange(min=8), help="Requests in the burst.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1), help="Threads that serve.")
@json_option
def command(out: Path, requests: int, threads: int, as_json: bool) -> None:
    """Serve a real sentence-embedding model with torch's own allocator and with mempool, and compare.

    With --json the results go to standard output, everything else to standard error.
    """
    from mempool import demo as demo_package

    try:
        status = demo_package.main(out=out, requests=requests, threads=threads, on_stderr=as_json)
    except demo_package.DemoError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo((out / "results.json").read_text(encoding="utf-8"), nl=False)
    sys.exit(status)
