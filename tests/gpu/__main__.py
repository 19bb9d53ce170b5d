"""gpu-check: builds, tests and measures mempool on the GPU of this machine, without a network.

make gpu-check [STAGES="build test"] [DEVICE=real|stand-in] [OUT=folder] [WHEEL=file] [TRACES=folder] [SMALL=1]
python tests/gpu [STAGE…] --device real
"""

from __future__ import annotations

import sys

import needs

if absent := needs.missing_modules():
    print(needs.sentence(absent), file=sys.stderr)
    sys.exit(2)

import datetime
import json
import signal
from pathlib import Path
from typing import Any

import built_package
import click
import machine
import source_tree
import steps
from rich.console import Console
from rich.table import Table
from stages import LIMIT_S, STAGES, Check

ROOT = built_package.ROOT
TRACES = (ROOT / "shared" / "traces", ROOT.parent / "shared" / "traces")


@click.command()
@click.argument("stages", nargs=-1, type=click.Choice(list(STAGES)))
@click.option("--device", type=click.Choice(["real", "stand-in"]), default="real", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.")
@click.option("--wheel", type=click.Path(path_type=Path, exists=True), help="A wheel to take instead of a build.")
@click.option("--traces", type=click.Path(path_type=Path, exists=True), help="Folder of recorded traces, *.csv.gz.")
@click.option("--small", is_flag=True, help="A little of each stage, for a dry run.")
@click.option("--limit", default=LIMIT_S, show_default=True, help="Seconds that a stage may take.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, for programs.")
def main(
    stages: tuple[str, ...],
    device: str,
    out: Path | None,
    wheel: Path | None,
    traces: Path | None,
    small: bool,
    limit: float,
    as_json: bool,
) -> None:
    """Run STAGES (all of them, if none is named), each for a limited time.

    What was written so far stays, whatever happens. Ends with status 1 when a step has failed, and 2 when this machine
    lacks something.
    """
    wanted = list(stages or STAGES)
    is_real = device == "real"
    found = traces or next((each for each in TRACES if each.is_dir()), None)
    check = Check((out or _default_out(is_real)).resolve(), device, wheel, found, small)
    # Whatever is asked for, there must be something to run it with.
    if "build" not in wanted and (wheel is not None or (is_real and not built_package.is_there())):
        wanted.insert(0, "build")
    absent = needs.missing(is_built_here="build" in wanted and check.has_package and wheel is None, is_real=is_real)
    if absent:
        click.echo(needs.sentence(absent), err=True)
        sys.exit(2)
    if check.has_package:
        source_tree.copy_without_package(ROOT, built_package.TREE)
    # A step is a session of its own: whoever ends this process must end that, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    facts = {"device": device, "machine": machine.facts(ROOT)}
    results = []
    for name in wanted:
        results.append(steps.Stage(name, check.out, facts, limit).run(STAGES[name](check)))
        if name == "build" and not steps.has_passed(results[-1]):
            break  # nothing could be run
    if as_json:
        click.echo(json.dumps({"out": str(check.out), "stages": results}, indent=1))
    else:
        _print(results, check.out)
    sys.exit(0 if all(map(steps.has_passed, results)) else 1)


def _default_out(is_real: bool) -> Path:
    """Reports of a GPU are kept with the sources; those of a dry run are not."""
    if not is_real:
        return built_package.WORK / "dry_run"
    return ROOT / "benchmarks" / "results" / "gpu" / datetime.date.today().isoformat()


def _print(results: list[dict[str, Any]], out: Path) -> None:
    table = Table(title=f"gpu-check on {results[0]['device']}", title_justify="left")
    for column in ("stage", "step", "", "s", "tests"):
        table.add_column(column, justify="right" if column == "s" else "left", overflow="fold")
    for result in results:
        for step in result["steps"]:
            tests = ", ".join(f"{count} {what}" for what, count in (step.get("tests") or {}).items() if count)
            status = f"{step['status']} {step.get('why', '')}".strip()
            table.add_row(result["stage"], step["name"], status, str(step.get("seconds", "")), tests)
    console = Console(markup=False)
    console.print(table)
    console.print(f"results: {out}", soft_wrap=True)


if __name__ == "__main__":
    main(prog_name="gpu-check")
