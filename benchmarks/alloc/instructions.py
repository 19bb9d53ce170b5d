"""Counts the instructions of a cached allocation and its free through `c10::Allocator`, by callgrind.

    python -m benchmarks.alloc.instructions [--json]

The count does not depend on other load of the machine. It is the difference of two runs of different length, so that
it leaves out the start. Ends with status 1 where a row outside of pools is above `MOST` times its count at `BASE`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common import BenchmarkError, compile_program, package_folder

BASE = "4d0e723"  # the commit that all rows are compared with
MOST = 1.03
# Instructions by the block's bytes and whether a pool is charged, counted at BASE by this program with g++ 12.2.
BEFORE = {
    (64, False): 309,
    (4096, False): 309,
    (262144, False): 342,
    (64, True): 1329,
    (4096, True): 1342,
    (262144, True): 1321,
}
_SHORT, _LONG = 1_000, 11_000  # pairs


def counted(program: Path, size: int, in_pool: bool, pairs: int) -> int:
    """Instructions of one whole run."""
    profile = f"--callgrind-out-file={program.with_suffix('.profile')}"
    command = ["valgrind", "--tool=callgrind", profile, str(program), str(size), str(pairs)]
    try:
        run = subprocess.run([*command, *(["pool"] if in_pool else [])], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchmarkError(f"valgrind cannot be run: {error}") from error
    found = re.search(r"Collected : (\d+)", run.stderr)
    if run.returncode != 0 or found is None:
        raise BenchmarkError(f"callgrind counted nothing (status {run.returncode}):\n{run.stderr[-2000:]}")
    return int(found[1])


def measure() -> list[dict[str, object]]:
    """One row for each size, outside of pools and in one."""
    here = Path(__file__)
    sources = [here.with_suffix(".cpp"), here.parents[2] / "csrc/torch/cpu_allocator.cpp"]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        program = compile_program(sources, Path(folder) / "pairs", [package_folder()], ["-lmempool", "-lc10"])
        for (size, in_pool), before in BEFORE.items():
            runs = [counted(program, size, in_pool, pairs) for pairs in (_SHORT, _LONG)]
            now = (runs[1] - runs[0]) / (_LONG - _SHORT)
            rows.append({"bytes": size, "in_pool": in_pool, "before": before, "now": now, "ratio": now / before})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    try:
        rows = measure()
    except BenchmarkError as error:
        sys.exit(str(error))
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        table = Table(title="instructions of a cached pair", title_justify="left")
        for column in ("bytes", "charged to", f"at {BASE}", "now", "ratio"):
            table.add_column(column, justify="right")
        for row in rows:
            where = "a pool" if row["in_pool"] else "the device"
            table.add_row(str(row["bytes"]), where, str(row["before"]), f"{row['now']:.0f}", f"{row['ratio']:.3f}")
        Console().print(table)
    sys.exit(any(not row["in_pool"] and float(str(row["ratio"])) > MOST for row in rows))


if __name__ == "__main__":
    main()
