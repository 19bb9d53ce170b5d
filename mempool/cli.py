"""The command ``mempool``."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

import mempool
from mempool import _core, report


class _Group(click.Group):
    """Turns the library's own errors into one sentence and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (mempool.ConfigError, mempool.DeviceError, mempool.SnapshotError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mempool.__version__, prog_name="mempool")
def main() -> None:
    """Memory that a PyTorch user can control."""


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--limit", help="Most bytes the CPU may hold: '8GiB', '50%'.")
@click.option("--soft-limit", help="Held bytes above which memory is trimmed.")
@click.option("--snapshot", type=click.Path(dir_okay=False, path_type=Path), help="Write a snapshot at the end.")
@click.option("-m", "as_module", is_flag=True, help="SCRIPT is a module, as for python -m.")
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(
    script: str,
    args: tuple[str, ...],
    limit: str | None,
    soft_limit: str | None,
    snapshot: Path | None,
    as_module: bool,
) -> None:
    """Run SCRIPT with mempool under its tensors, and print a summary at its end (to standard error).

    The script needs no change. Its exit status is passed on.
    """
    if not as_module and not os.path.isfile(script):
        raise click.BadParameter(f"there is no file '{script}'.", param_hint="SCRIPT")
    mempool.enable("cpu", limit=limit, soft_limit=soft_limit)
    if snapshot is not None:
        mempool.record_history(True, "cpu")
    sys.argv = [script, *args]
    try:
        if as_module:
            sys.path.insert(0, os.getcwd())
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
            runpy.run_path(script, run_name="__main__")
    finally:
        if snapshot is not None:
            mempool.dump_snapshot(snapshot, "cpu")
        report.print_run_summary(Console(stderr=True), snapshot)


@main.command()
@click.argument("snapshot", type=click.Path(path_type=Path))
@click.option("--top", default=10, show_default=True, help="Places in the code to list.")
def stats(snapshot: Path, top: int) -> None:
    """Print a summary of a saved SNAPSHOT: bytes by pool, and where the live blocks were made."""
    try:
        loaded = mempool.load_snapshot(snapshot)
    except OSError as error:
        raise click.ClickException(f"cannot read '{snapshot}': {error.strerror or error}.") from error
    report.print_snapshot_summary(Console(), loaded, top)


@main.command()
def options() -> None:
    """List the options that MEMPOOL_CONF takes (key:value,key:value)."""
    report.print_options(Console(), _core.options())


@main.command()
@click.option(
    "--out",
    default="out/demo",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the snapshot and the timeline.",
)
@click.option("--requests", default=120, show_default=True, type=click.IntRange(min=8), help="Requests in the burst.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1), help="Threads that serve.")
def demo(out: Path, requests: int, threads: int) -> None:
    """Serve a real sentence-embedding model with torch's own allocator and with mempool, and compare."""
    from mempool import demo as demo_package

    try:
        status = demo_package.main(out=out, requests=requests, threads=threads)
    except demo_package.DemoError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(status)
