"""Compares mempool's CUDA allocator with torch's native one, as it comes and with expandable segments.

    python -m benchmarks.cuda.run --device real|stand-in [--only replay pairs …] [--traces DIR] [--rounds 3]
                                  [--seconds 500] [--scale 1.0] [--out benchmarks/results] [--json]

Run it with the Python that has torch's CUDA build and mempool. In each round all tasks run once on each side, in turn,
each in a process of its own; a cell of the tables is the median over the rounds, with the smallest and the largest. No
process is begun after `--seconds`. The report is written after each process, so that what ran stays.

On the stand-in (after `make standin`) no GPU takes part: what counts there is the number of driver calls, the memory
held and the time of the allocators themselves, not the time of a driver or a kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common import (
    DEFAULT_OUT,
    ROOT,
    BenchmarkError,
    Json,
    Spread,
    child_environment,
    compile_loops,
    environment_facts,
    table_console,
    write_report,
)
from benchmarks.cuda import DEVICES, SIDES
from benchmarks.cuda.training import LENGTHS

sys.path.insert(0, str(ROOT / "tests" / "gpu"))
import cuda_toolkit

# In the order of worth, as time may run out.
TASKS = ("pairs", "cold", "holes", "races", "train", "sleep", "replay", "operators", "smallest", "offload")
# The stand-in alone counts every call and holds streams; replays to find the smallest device take long on a GPU.
ONLY_STAND_IN = ("smallest", "offload")
CHILD_S = 180
_WRONG = "wrong_"  # figures that have to be zero


@dataclass(frozen=True)
class Job:
    """One task, with what it is run on."""

    task: str
    argument: str = ""
    is_tight: bool = False

    @property
    def title(self) -> str:
        name = Path(self.argument).name.split(".")[0]
        return f"{self.task} {name}{', tight' if self.is_tight else ''}".strip()

    @property
    def words(self) -> list[str]:
        return [*(["--tight"] if self.is_tight else []), self.task, *([self.argument] if self.argument else [])]

    @property
    def sides(self) -> tuple[str, ...]:
        return ("mempool",) if self.task == "sleep" else SIDES


def jobs(device: str, only: Sequence[str], traces: Sequence[Path]) -> Iterator[Job]:
    """What one round runs, in order."""
    for task in TASKS:
        if task not in only or (device == "real" and task in ONLY_STAND_IN):
            continue
        if task == "train":
            yield from (Job(task, lengths) for lengths in LENGTHS)
        elif task in ("replay", "smallest"):
            yield from (Job(task, str(path)) for path in traces)
        else:
            yield Job(task)
        if task == "replay":
            yield from (Job(task, str(path), is_tight=True) for path in traces)


class Worker:
    """Starts the processes of the benchmark on one device."""

    def __init__(self, options: argparse.Namespace, loops: Path) -> None:
        self._base = [sys.executable, "-m", "benchmarks.cuda.worker", "--device", options.device, "--loops", str(loops)]
        self._base += ["--scale", str(options.scale), "--steps", str(options.steps)]
        self._environment = child_environment(1)[0]

    def ask(self, side: str, words: Sequence[str], limit_s: float) -> Json:
        """The JSON of one process. Raises BenchmarkError."""
        command = [*self._base, "--side", side, *words]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=self._environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"not done after {limit_s:.0f} s") from error
        if done.returncode != 0:
            raise BenchmarkError(f"status {done.returncode}: {done.stderr[-4000:]}")
        answer: Json = json.loads(done.stdout.strip().splitlines()[-1])
        return answer

    def do(self, job: Job, side: str, limit_s: float) -> Json:
        """The figures of a job. The smallest device is followed by a replay on one that is a tenth larger."""
        figures = self.ask(side, job.words, limit_s)
        if job.task == "smallest":
            capacity = str(int(1.1 * figures["smallest_bytes"]))
            again = self.ask(side, ["--capacity", capacity, "replay", job.argument], limit_s)
            figures |= {f"{name}_at_1_1": again.get(name) for name in ("completes", "driver_calls")}
        return figures


def measure(worker: Worker, todo: Sequence[Job], options: argparse.Namespace, results: Json, console: Console) -> None:
    """Rounds of all jobs until the time is over; `results["runs"]` grows by a row for each process."""
    until = time.monotonic() + options.seconds
    for number in range(options.rounds):
        for job in todo:
            for side in job.sides:
                left = until - time.monotonic()
                if left <= 0:
                    results["ended_early"] = f"out of time in round {number + 1}, before {job.title}, {side}"
                    return
                row: Json = {"round": number, "task": job.title, "side": side}
                begun = time.monotonic()
                try:
                    row["figures"] = worker.do(job, side, min(CHILD_S, left))
                except BenchmarkError as error:
                    row["error"] = str(error)
                    console.print(f"{job.title}, {side}: {error}", soft_wrap=True)
                row["process_s"] = time.monotonic() - begun
                results["runs"].append(row)
                results["summary"] = summary(results["runs"])
                write_report(options.out, "cuda", results)


def summary(runs: Sequence[Json]) -> Json:
    """By task, figure and side: the spread over the rounds of a number, and the last of anything else."""
    values: dict[tuple[str, str, str], list[object]] = {}
    for row in runs:
        for figure, value in row.get("figures", {"error": row.get("error", "")[:200]}).items():
            values.setdefault((row["task"], figure, row["side"]), []).append(value)
    out: Json = {}
    for (task, figure, side), found in values.items():
        is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)
        spread = Spread.of([float(str(value)) for value in found]) if is_number else None
        entry = {"median": spread.median, "low": spread.low, "high": spread.high} if spread else found[-1]
        out.setdefault(task, {}).setdefault(figure, {})[side] = entry
    return out


def print_summary(tasks: Json, console: Console) -> None:
    """A table for each task: a row for each figure, a column for each allocator."""
    for task, figures in tasks.items():
        sides = [side for side in SIDES if any(side in by_side for by_side in figures.values())]
        table = Table(title=task, title_justify="left")
        table.add_column("")
        for side in sides:
            table.add_column(side, justify="right", overflow="fold")
        for figure, by_side in figures.items():
            table.add_row(figure.replace("_", " "), *(_cell(by_side.get(side)) for side in sides))
        console.print(table)


def _cell(value: object) -> str:
    if not isinstance(value, dict):
        return "-" if value is None else str(value)
    spread = Spread(**value)
    is_whole = all(number == int(number) for number in (spread.median, spread.low, spread.high))
    digits = 0 if is_whole else 1 if spread.median >= 100 else 3
    return spread.text(digits)


def print_means(tasks: Json, console: Console) -> None:
    """Geometric means over the traces, of the ratios."""
    for figure, task in (("reserved_per_live", "replay"), ("smallest_per_live", "smallest")):
        rows = [f[figure] for title, f in tasks.items() if title.startswith(f"{task} ") and figure in f]
        rows = [row for row in rows if all(isinstance(row.get(side), dict) for side in SIDES)]
        if rows:
            means = (statistics.geometric_mean([row[side]["median"] for row in rows]) for side in SIDES)
            text = ", ".join(f"{side} {mean:.4f}" for side, mean in zip(SIDES, means, strict=True))
            console.print(f"{figure.replace('_', ' ')}, geometric mean of {len(rows)} replays: {text}")


def failures(runs: Sequence[Json]) -> list[str]:
    """What must not be: processes that failed, and data that was wrong."""
    out = [f"{row['task']}, {row['side']}: failed" for row in runs if "error" in row]
    for row in runs:
        bad = [name for name, value in row.get("figures", {}).items() if name.startswith(_WRONG) and value]
        out += [f"{row['task']}, {row['side']}: {row['figures'][name]} {name.replace('_', ' ')}" for name in bad]
    return out


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", required=True, choices=DEVICES)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "traces", help="of *.csv.gz")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3600, help="no process is begun later")
    parser.add_argument("--scale", type=float, default=1.0, help="of the workloads in gigabytes")
    parser.add_argument("--steps", type=int, default=50, help="of training")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--json", action="store_true", help="print the report, and no tables")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    console = Console(file=open(os.devnull, "w")) if options.json else table_console()  # noqa: SIM115 - as long as we
    traces = sorted(options.traces.glob("*.csv.gz"))
    if not traces and "replay" in options.only:
        console.print(f"no traces in {options.traces}")
    results: Json = {"facts": environment_facts(1), "scale": options.scale, "steps": options.steps, "runs": []}
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(__file__).with_name("loops.cpp")
            headers = [str(each) for each in cuda_toolkit.header_folders()]
            loops = compile_loops(source, Path(folder), ["-lc10", "-lc10_cuda"], headers)
            worker = Worker(options, loops)
            results["device"] = worker.ask("native", ["facts"], CHILD_S)
            measure(worker, list(jobs(options.device, options.only, traces)), options, results, console)
    except (BenchmarkError, cuda_toolkit.ToolkitError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results["failures"] = failures(results["runs"])
    path = write_report(options.out, "cuda", results)
    print_summary(results.get("summary", {}), console)
    print_means(results.get("summary", {}), console)
    for text in [*results["failures"], *([results["ended_early"]] if "ended_early" in results else [])]:
        console.print(text, soft_wrap=True)
    console.print(f"{results['device']['name']}, {options.device}. written: {path}", soft_wrap=True)
    if options.json:
        print(json.dumps(results, indent=1))
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
