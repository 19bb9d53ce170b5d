"""Starts the workers in turn (torch, mempool, torch, mempool), checks what they return and reports it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mempool._files import atomic_write
from mempool.demo import corpus, report
from mempool.demo.errors import DemoError
from mempool.demo.model import find_weights
from mempool.demo.report import Run

REPEATS = 2
WARMUP_PER_THREAD = 4
# Anything that would give one of the two another allocator, or other settings, than its defaults.
CLEARED = ("LD_PRELOAD", "MEMPOOL_CONF", "GLIBC_TUNABLES", "PYTORCH_ALLOC_CONF", "THP_MEM_ALLOC_ENABLE")


def run(out: Path, requests: int, threads: int, on_stderr: bool) -> int:
    """See mempool.demo.main."""
    weights = find_weights()
    out = out.resolve()  # the workers run elsewhere
    out.mkdir(parents=True, exist_ok=True)
    snapshot = out / "snapshot.pickle"
    console = Console(stderr=on_stderr)
    workload = corpus.build(requests, WARMUP_PER_THREAD * threads)
    passages = sum(len(request) for request in workload.burst)
    console.print(
        f"all-MiniLM-L6-v2 embeds {passages} passages in {requests} requests (serving threads: {threads}), "
        f"in a new process each time: torch's CPU allocator and mempool in turn."
    )
    with tempfile.TemporaryDirectory(prefix="mempool-demo-") as scratch:
        runs = _run_all(Path(scratch), workload, weights, threads, snapshot, console)

    console.print(report.table(runs, threads))
    difference = _largest_difference(runs)
    report.print_equality(console, difference, runs[0].embeddings.shape)
    isolation = runs[-1].result["isolation"]
    held = report.print_isolation(console, isolation)
    files = {
        "timeline": report.write_timeline(runs, out / "timeline.png"),
        "snapshot": snapshot,
        "results": _write_results(runs, difference, out / "results.json"),
    }
    report.print_files(console, files)
    return 0 if difference == 0.0 and held else 1


def _run_all(
    scratch: Path, workload: corpus.Workload, weights: Path, threads: int, snapshot: Path, console: Console
) -> list[Run]:
    description = scratch / "workload.json"
    description.write_text(json.dumps(asdict(workload)), encoding="utf-8")
    order = ["torch", "mempool"] * REPEATS
    runs = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[stage]}"), console=console) as progress:
        tasks = [
            progress.add_task(f"{name:8}{i // 2 + 1}/{REPEATS}", total=len(workload.burst), start=False, stage="")
            for i, name in enumerate(order)
        ]
        for i, (name, task) in enumerate(zip(order, tasks, strict=True)):
            result, embeddings = scratch / f"{i}.json", scratch / f"{i}.npy"
            arguments = ["--allocator", name, "--workload", str(description), "--weights", str(weights)]
            arguments += ["--threads", str(threads), "--result", str(result), "--embeddings", str(embeddings)]
            if i == len(order) - 1:
                arguments += ["--snapshot", str(snapshot)]

            def on_line(kind: str, value: str, task: Any = task) -> None:
                if kind == "done":
                    progress.update(task, completed=int(value))
                elif kind == "stage":
                    progress.update(task, stage=value)

            progress.start_task(task)
            _run_worker(name, arguments, scratch, on_line)
            progress.stop_task(task)
            progress.update(task, stage="")
            runs.append(Run(name, json.loads(result.read_text(encoding="utf-8")), np.load(embeddings)))
    return runs


def _run_worker(name: str, arguments: list[str], folder: Path, on_line: Callable[[str, str], None]) -> None:
    command = [sys.executable, "-m", "mempool.demo.worker", *arguments]
    # stderr goes to a file: nobody reads a second pipe while the lines of stdout are followed.
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        # -m puts the current folder on the module path: in a folder of ours it hides no module, as a checkout would.
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(), stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                kind, _, value = line.strip().partition(" ")
                on_line(kind, value)
            status = process.wait()
        finally:
            process.kill()
            process.wait()
        if status != 0:
            errors.seek(0)
            tail = errors.read().strip().splitlines()[-12:]
            raise DemoError("\n".join([f"The worker for {name} ended with exit status {status}.", *tail]))


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in CLEARED and not k.startswith("MALLOC_")}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONIOENCODING": "utf-8",
    }


def _largest_difference(runs: list[Run]) -> float:
    """Exactly 0 only if every run gave the same bits; otherwise the largest absolute difference to the first run."""
    first = runs[0].embeddings
    if all(other.embeddings.tobytes() == first.tobytes() for other in runs[1:]):
        return 0.0
    if any(other.embeddings.shape != first.shape for other in runs[1:]):
        return float("inf")
    largest = max(float(np.abs(other.embeddings - first).max()) for other in runs[1:])
    # Different bits with no difference in value: a NaN, or zeros of two signs.
    return largest if largest > 0.0 else float("nan")


def _write_results(runs: list[Run], difference: float, path: Path) -> Path:
    """Every number behind the table and the plot, for whoever wants to draw another."""
    document = {
        "largest_difference": difference,
        "machine": report.machine(),
        "runs": [{"allocator": run.allocator, **run.result} for run in runs],
    }
    with atomic_write(path) as file:
        file.write(json.dumps(document).encode())
    return path
