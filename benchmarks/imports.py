"""Times what mempool adds to a program's start: to `import torch`, by its entry point, and by `import mempool`.

    python -m benchmarks.imports [--repeats N] [--out benchmarks/results]

Every import is that of a fresh process whose modules have been compiled to bytecode, as an installed package's have:
where PYTHONDONTWRITEBYTECODE is set, each start would compile mempool anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.common import (
    DEFAULT_OUT,
    Json,
    Spread,
    child_environment,
    environment_facts,
    in_turn,
    progress,
    spread_json,
    table_console,
    write_report,
)

# Wall-clock and CPU time of one import, in seconds, after what comes before it.
CHILD = """
import json, sys, time
exec(sys.argv[1])
wall, cpu = time.perf_counter(), time.process_time()
exec(sys.argv[2])
print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}))
"""
# Each side: what is imported before, and what is timed. The second is what torch does at the end of its import because
# mempool is installed; that it looks for entry points is its own.
SIDES = {
    "torch": ("", "import torch"),
    "the entry point, in torch's": ("import torch", "import _mempool_autoload; _mempool_autoload.load()"),
    "mempool after torch": ("import torch", "import mempool"),
}


def run_side(side: str, bytecode: Path) -> Json:
    """One import in a fresh process; `bytecode`: the folder of compiled modules."""
    before, timed = SIDES[side]
    off = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    environment = {**child_environment(1)[0], **off, "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", CHILD, before, timed]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: Json = json.loads(done.stdout)
    return result


def show(results: Mapping[str, Sequence[Json]], facts: Mapping[str, object], repeats: int) -> None:
    """Prints the table, in milliseconds."""
    table = Table(caption=f"{facts['cpu']}, torch {facts['torch']}; median (smallest-largest) of {repeats} processes")
    for column in ("import of", "wall ms", "CPU ms"):
        table.add_column(column, justify="left" if column == "import of" else "right")
    for side, rows in results.items():
        cells = [Spread.of([row[clock] * 1e3 for row in rows]).text(2) for clock in ("wall", "cpu")]
        table.add_row(side, *cells)
    table_console().print(table)


def main() -> None:
    """Reads the command line, runs the processes in turn, prints the table and writes `imports.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    given = parser.parse_args()
    console = table_console()
    with tempfile.TemporaryDirectory() as folder, progress(console, len(SIDES) * given.repeats) as advance:
        for side in SIDES:  # compiles the modules, and reads the files once
            run_side(side, Path(folder))
        results = in_turn(list(SIDES), given.repeats, lambda side: run_side(side, Path(folder)), lambda: advance(""))
    facts = environment_facts(threads=1)
    show(results, facts, given.repeats)
    summary = {
        side: {clock: spread_json([row[clock] for row in rows]) for clock in ("wall", "cpu")}
        for side, rows in results.items()
    }
    path = write_report(given.out, "imports", {"environment": facts, "seconds": summary, "processes": results})
    console.print(f"{os.path.relpath(path)} has every number.")


if __name__ == "__main__":
    main()
