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
    result = _examine(_Report(out), None if as_json else console(), full, gpu)
    if as_json:
        print_json(result)
    elif out is not None:
        console().print(f"report: {shown(out)}", soft_wrap=True)
    sys.exit(0 if result["passed"] else 1)


class _Report:
    """The result so far. Each change is in the file at once: whatever happens then, what was found stays."""

    def __init__(self, out: Path | None) -> None:
        self._out = out
        self._parts: dict[str, Any] = {}

    def put(self, **parts: Any) -> None:
        """Takes more of the result."""
        self._write({**self._parts, **parts, "complete": False, "passed": None})
        self._parts.update(parts)

    def end(self) -> dict[str, Any]:
        """The whole result, with all that was asked for in it."""
        verdicts = [self._parts["passed"], self._parts.get("gpu", {}).get("passed", True)]
        result = {**self._parts, "complete": True, "passed": all(verdicts)}
        self._write(result)
        return result

    def _write(self, result: dict[str, Any]) -> None:
        if self._out is None:
            return
        try:
            with atomic_write(self._out) as file:
                file.write((json.dumps(result, indent=1) + "\n").encode())
        except OSError as error:
            raise click.ClickException(f"cannot write '{self._out}': {error.strerror}.") from error


def _examine(report: _Report, to: Console | None, full: bool, gpu: bool) -> dict[str, Any]:
    """Runs the checks that were asked for, and prints each part as soon as it is complete."""
    from mempool import doctor

    with progress("self-checks") as advance:
        checked = doctor.examine(advance, lambda result: report.put(**result))
    if to is not None:
        _print_examination(to, checked)
    if gpu:
        with progress("packed layers on the GPU") as advance:
            examined = doctor.examine_gpu(advance, lambda result: report.put(gpu=result))
        if to is not None:
            _print_gpu(to, examined)
    if full:
        report.put(benchmarks=[])
        with progress("benchmarks") as advance:
            has_cuda = checked["facts"]["cuda_problem"] is None
            done = doctor.run_benchmarks(has_cuda, advance, lambda results: report.put(benchmarks=results))
        if to is not None:
            _print_benchmarks(to, done)
    return report.end()


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
        table.add_row(row["name"], f"{row['outputs']} x {row['inputs']}", _tokens(row), *times, outcome)
    to.print(table)


def _tokens(row: dict[str, Any]) -> str:
    return "-" if row["tokens"] is None else str(row["tokens"])


def _print_benchmarks(to: Console, benchmarks: list[dict[str, Any]]) -> None:
    if not benchmarks:
        to.print(
            "no benchmarks: they are in the source folder, and mempool was not installed from one (pip install -e .)"
        )
    for each in benchmarks:
        to.print(f"{each['benchmark']} (status {each['status']})\n{each['output']}{each['errors']}", soft_wrap=True)
