"""The command ``mempool doctor``: what the machine has, and whether mempool works on it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from mempool._files import atomic_write, check_writable
from mempool.cli.common import console, format_size, json_option, print_json, progress, shown


@click.command("doctor")
@click.option("--full", is_flag=True, help="Run the benchmarks, too (minutes; from a source folder).")
@click.option("--gpu", is_flag=True, help="Run packed layers on the GPU, too: outputs, and speed beside its libraries.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the report there, as JSON.")
@json_option
def command(full: bool, gpu: bool, out: Path | None, as_json: bool) -> None:
    """Say what this machine has, and check that mempool works on each of its devices.

    Ends with status 1 when a check has failed.
    """
    if out is not None:
        try:
            check_writable(out)
        except OSError as error:
            raise click.BadParameter(f"cannot write '{out}': {error.strerror}.", param_hint="--out") from error
    result = _examine(None if as_json else console(), full, gpu)
    if out is not None:
        try:
            with atomic_write(out) as file:
                file.write((json.dumps(result, indent=1) + "\n").encode())
        except OSError as error:
            raise click.ClickException(f"cannot write '{out}': {error.strerror}.") from error
    if as_json:
        print_json(result)
    elif out is not None:
        console().print(f"report: {shown(out)}", soft_wrap=True)
    sys.exit(0 if result["passed"] else 1)


def _examine(to: Console | None, full: bool, gpu: bool) -> dict[str, Any]:
    """Runs the checks that were asked for, and prints each part as soon as it is complete."""
    from mempool import doctor

    with progress("self-checks") as advance:
        result = doctor.examine(advance)
    if to is not None:
        _print_examination(to, result)
    if gpu:
        from mempool.doctor.gpu import examine

        result["gpu"] = examine()
        if to is not None:
            _print_gpu(to, result["gpu"])
        result["passed"] = result["passed"] and result["gpu"]["passed"]
    if full:
        with progress("benchmarks") as advance:
            result["benchmarks"] = doctor.run_benchmarks(result["facts"]["cuda_problem"] is None, advance)
        if to is not None:
            _print_benchmarks(to, result["benchmarks"])
    return result


def _print_examination(to: Console, result: dict[str, Any]) -> None:
    facts = Table(title="this machine", title_justify="left", show_header=False)
    for name, value in result["facts"].items():
        if name == "cuda_devices":
            text = "; ".join(f"{d['name']} ({d['capability']}, {format_size(d['memory_bytes'])})" for d in value)
            text = text or "none"
        elif name.endswith("_bytes"):
            text = format_size(value)
        elif isinstance(value, list):
            text = ", ".join(value) or "none"
        else:
            text = {None: "-", True: "yes", False: "no"}.get(value, str(value))
        facts.add_row(name.removesuffix("_bytes").replace("_", " "), text)
    to.print(facts)
    checks = Table(title="self-checks", title_justify="left")
    for column in ("device", "check", "", "detail"):
        checks.add_column(column, overflow="fold")
    for check in result["checks"]:
        checks.add_row(check["device"], check["name"], "ok" if check["passed"] else "FAILED", check["detail"])
    to.print(checks)


def _print_gpu(to: Console, result: dict[str, Any]) -> None:
    """Prints the measurements on the GPU, or why there are none."""
    if result["problem"] is not None:
        to.print(f"no GPU was examined: {result['problem']}", soft_wrap=True)
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
    to.print(table)


def _print_benchmarks(to: Console, benchmarks: list[dict[str, Any]]) -> None:
    if not benchmarks:
        to.print(
            "no benchmarks: they are in the source folder, and mempool was not installed from one (pip install -e .)"
        )
    for each in benchmarks:
        to.print(f"{each['benchmark']} (status {each['status']})\n{each['output']}{each['errors']}", soft_wrap=True)
