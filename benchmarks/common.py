"""Helpers of all benchmarks: children that take turns, spreads, facts about the machine, table cells and JSON.

A measurement never happens in the parent. Each one is a fresh child process (`run_child`), because an allocator leaves
its traces in a process (thresholds that glibc adapts, heaps already grown), and the peers take turns (`in_turn`), so
that a machine that is slow for a minute slows both. This module imports neither torch nor mempool at the top: the
parent stays small, and a child decides itself when each is loaded. The peers are in `benchmarks.peers`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.peers import GLIBC, check_loaded, peer
from benchmarks.peers import OURS as OURS_PEER

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_OUT = ROOT / "benchmarks" / "results"

PEER = GLIBC.name  # torch's own CPU allocator on the default C library
OURS = OURS_PEER.name

# Variables that tune or replace malloc are taken out: the peer has to be default glibc, and mempool has to be as
# shipped. THP_MEM_ALLOC_ENABLE makes torch's own allocator ask for huge pages.
_KEPT = ("MEMPOOL_FORCE_ISA",)  # it chooses kernels, and tunes no allocator
_TUNING_PREFIXES = ("MALLOC_", "MEMPOOL_", "PYTORCH_ALLOC", "PYTORCH_CUDA_ALLOC", "PYTORCH_NO_CUDA_MEMORY")
_TUNING_NAMES = ("LD_PRELOAD", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")

Json = dict[str, Any]


class BenchmarkError(RuntimeError):
    """A child failed or printed no result; the message holds the end of its stderr."""


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of the repeats; the unit is that of the values."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 2, scale: float = 1.0) -> str:
        """A table cell, `median (low-high)`, each divided by `scale`."""
        median, low, high = (f"{value / scale:,.{digits}f}" for value in (self.median, self.low, self.high))
        return median if low == high else f"{median} ({low}-{high})"


def paired_ratio(ours: Sequence[float], peer: Sequence[float]) -> Spread:
    """The spread of ours / peer over pairs of adjacent runs, which has less noise than a ratio of two medians."""
    return Spread.of([mine / theirs for mine, theirs in zip(ours, peer, strict=True)])


def child_environment(threads: int) -> tuple[dict[str, str], dict[str, str]]:
    """The environment of a child with `threads` threads, and the variables that were taken out of it."""
    removed = {
        name: value
        for name, value in os.environ.items()
        if name in _TUNING_NAMES or (name.startswith(_TUNING_PREFIXES) and name not in _KEPT)
    }
    kept = {name: value for name, value in os.environ.items() if name not in removed}
    # Set before torch is loaded, as its OpenMP and MKL start their threads from these.
    return {**kept, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}, removed


def run_child(module: str, arguments: Sequence[str], threads: int, side: str) -> Json:
    """Runs `python -m module --allocator=side arguments` from the repository root, on that allocator, and returns the
    JSON of its last line of stdout."""
    environment = {**child_environment(threads)[0], **peer(side).variables()}
    arguments = [f"--allocator={side}", *arguments]
    child = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        raise BenchmarkError(
            f"{module} {' '.join(arguments)} ended with status {child.returncode}:\n{child.stderr[-4000:]}"
        )
    try:
        answer: Json = json.loads(child.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise BenchmarkError(f"{module} {' '.join(arguments)} printed no JSON: {child.stdout[-400:]!r}") from error
    return answer


def compile_loops(source: Path, folder: Path, libraries: Sequence[str], headers: Sequence[str] = ()) -> Path:
    """Compiles a benchmark's C++ against the torch of this environment; returns the library's path.

    `libraries`: those of torch, as linker options; at run time they are loaded already. `headers`: more folders.
    The compiler is `$CXX`, or `c++`.
    """
    torch = _torch_folder()
    out = folder / "loops.so"
    more = [option for each in headers for option in ("-isystem", each)]
    _compile(["-O2", "-shared", "-fPIC", *more, str(source), "-o", str(out), f"-L{torch}/lib", *libraries])
    return out


def compile_program(sources: Sequence[Path], out: Path, folders: Sequence[Path], libraries: Sequence[str]) -> Path:
    """Compiles a program of this project's C++ and torch's libraries, which it finds again when it runs.

    `folders`: where `libraries` (linker options) lie beside torch's own.
    """
    places = [*map(str, folders), f"{_torch_folder()}/lib"]
    found = [option for place in places for option in (f"-L{place}", f"-Wl,-rpath,{place}")]
    root = Path(__file__).resolve().parents[1]
    _compile(["-O3", "-DNDEBUG", f"-I{root}/csrc", *map(str, sources), "-o", str(out), *found, *libraries])
    return out


def package_folder() -> Path:
    """Where libmempool.so lies: beside the compiled modules, which an editable installation keeps apart."""
    from mempool import _core

    return Path(_core.__file__).parent


def _torch_folder() -> Path:
    found = find_spec("torch")
    if found is None or found.origin is None:
        raise BenchmarkError("torch is not installed in this environment")
    return Path(found.origin).parent


def _compile(arguments: Sequence[str]) -> None:
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-isystem", f"{_torch_folder()}/include", *arguments]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except OSError as error:
        raise BenchmarkError(f"no C++ compiler: {error}") from error
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{error.stderr[-4000:]}") from error


def in_turn(
    sides: Sequence[str], repeats: int, run: Callable[[str], Json], done: Callable[[], None]
) -> dict[str, list[Json]]:
    """Runs each side `repeats` times in turn (A B C A B C …); the i-th results of all sides are one pair, or tuple."""
    results: dict[str, list[Json]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            results[side].append(run(side))
            done()
    return results


def use_allocator(side: str) -> None:
    """In a child: makes `side` the allocator of CPU tensors. Called before the first tensor is made."""
    check_loaded(side)
    if side == OURS:
        import mempool

        mempool.enable("cpu")


def allocator_stats(side: str) -> dict[str, int]:
    """In a child: mempool's statistics under the keys of `torch.cuda.memory_stats`; empty for torch's allocator."""
    if side != OURS:
        return {}
    import mempool

    return dict(mempool.memory_stats("cpu"))


def environment_facts(threads: int) -> Json:
    """The facts that figures depend on: machine, kernel, huge page setting, threads, versions, variables taken out."""
    return {
        "cpu": _proc_field("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_1min": os.getloadavg()[0],
        "kernel": platform.release(),
        "transparent_huge_pages": _transparent_huge_pages(),
        "threads": threads,
        "python": platform.python_version(),
        "glibc": platform.libc_ver()[1],
        "torch": metadata.version("torch"),
        "mempool": metadata.version("mempool"),
        "mempool_commit": _commit(),
        "variables_removed": child_environment(threads)[1],
    }


def _proc_field(path: str, field: str) -> str:
    """The first value of `field` in a file of `field : value` lines; "unknown" if there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "unknown")


def _transparent_huge_pages() -> str:
    """The chosen word of the kernel's setting, e.g. `madvise`."""
    try:
        setting = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    return next((word.strip("[]") for word in setting.split() if word.startswith("[")), "unknown")


def _commit() -> str:
    """The commit of the working tree, with `+changes` if it differs from it; "unknown" outside git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def spread_json(values: Sequence[float]) -> Json:
    """The spread of the repeats as a JSON object."""
    return asdict(Spread.of(values))


def write_report(out: Path, name: str, report: Mapping[str, Any]) -> Path:
    """Writes `report` to `out/name.json`, replacing an older one, and returns the path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def caption(facts: Mapping[str, Any], repeats: int) -> str:
    """The line under a table: machine, threads, versions, and how to read a cell."""
    return (
        f"{facts['cpu']}, {facts['cores_usable']} cores, kernel {facts['kernel']}, "
        f"THP {facts['transparent_huge_pages']}, glibc {facts['glibc']}, torch {facts['torch']}, "
        f"mempool {facts['mempool']} ({facts['mempool_commit']}), Python {facts['python']}. "
        f"Cells: median (smallest-largest) of {repeats} processes a side, in turn; "
        f"ratios: to {PEER} of neighbouring processes."
    )


def table_console() -> Console:
    """A console for a table: as wide as the terminal, or wide enough for every table here when written to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar over `total` children; yields a function that names what runs now and counts what is done.

    Call it with a name to show it, with an empty string to count one more child as done.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=total)

        def show(name: str) -> None:
            if name:
                bar.update(task, description=name)
            else:
                bar.advance(task)

        yield show
