"""The stages of gpu-check, each a sequence of steps. Their order is that of worth, where time is short."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import built_package
import cuda_toolkit
import needs
from steps import Step

_TEST_FILE_S, _TEST_S = 150, 60  # a hung kernel takes its file along, and no other
_CPU_TESTS_S = 300
_SMALL_TESTS = ("tests/cuda/native", "tests/cuda/test_graphs.py", "tests/cuda/test_mem_pools.py")
_SMALL_BENCHMARK = ("--rounds", "1", "--scale", "0.02", "--steps", "3", "--only", "cold", "holes", "races", "sleep")


@dataclass(frozen=True)
class Check:
    """What one run of gpu-check was asked for."""

    out: Path
    device: str  # real or stand-in
    wheel: Path | None = None
    traces: Path | None = None
    is_small: bool = False

    @property
    def is_real(self) -> bool:
        return self.device == "real"

    @property
    def has_package(self) -> bool:
        """Whether a package of its own is tested. On the stand-in it may be what this Python has."""
        return self.is_real or self.wheel is not None

    @property
    def folder(self) -> Path:
        return built_package.TREE if self.has_package else built_package.ROOT

    @property
    def play(self) -> tuple[str, ...]:
        """What puts the stand-in under a command that loads none itself."""
        return () if self.is_real else (str(built_package.ROOT / "tests" / "cuda_standin" / "run"),)

    def environment(self) -> dict[str, str]:
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "150"}
        device = {"MEMPOOL_TEST_DEVICE": "real"} if self.is_real else {"CUDA_STANDIN_LIB": str(needs.stand_in())}
        found = built_package.environment() if self.has_package else {}
        return {**offline, **device, **found}

    def step(self, name: str, *words: str, limit_s: float, plays: bool = False, **more: object) -> Step:
        """A step that this Python runs. `plays`: it loads no stand-in itself."""
        command = (*(self.play if plays else ()), sys.executable, *words)
        return Step(name, command, limit_s, self.folder, self.environment(), **more)  # type: ignore[arg-type]


def build(check: Check) -> Iterator[Step]:
    """The wheel, by nvcc for the GPU that is there, or the one that is named."""
    if not check.has_package:
        yield Step("build", why_not="on the stand-in the package of this Python is tested, or the one of WHEEL=")
        return
    yield from built_package.steps(check.out, check.wheel, check.play)


def test(check: Check) -> Iterator[Step]:
    """tests/cuda on the device, a process for each file; then the tests of the CPU, which hide the GPU."""
    files = [path.relative_to(check.folder) for path in sorted((check.folder / "tests/cuda").glob("test_*.py"))]
    names = _SMALL_TESTS if check.is_small else ("tests/cuda/native", *map(str, files))
    for name in names:
        yield _pytest(check, name, _TEST_FILE_S, "-v", "--durations=5", plays=False)
    workers = ["-n", str(min(8, len(os.sched_getaffinity(0)))), "--dist", "worksteal"] if find_spec("xdist") else []
    name = "tests/python/test_limits.py" if check.is_small else "tests/python"
    yield _pytest(check, name, _CPU_TESTS_S, "-q", *workers, plays=True)


def _pytest(check: Check, name: str, limit_s: float, *words: str, plays: bool) -> Step:
    report = check.out / f"{name.removeprefix('tests/').removesuffix('.py').replace('/', '-')}.xml"
    base = ("-m", "pytest", "-p", "no:cacheprovider", name, f"--junitxml={report}", "-o", f"timeout={_TEST_S}")
    return check.step(name, *base, *words, limit_s=limit_s, plays=plays, tests=report)


def doctor(check: Check) -> Iterator[Step]:
    """The user's own check, with the GPU's kernels: it writes its report as it goes."""
    # On the stand-in emulated kernels would take hours on the shapes that are timed.
    options = ["--gpu", "--full"] if check.is_real else []
    out = check.out / "doctor_report.json"
    yield check.step("doctor", "-m", "mempool", "doctor", *options, "--out", str(out), limit_s=520, plays=True)


def driver_costs(check: Check) -> Iterator[Step]:
    """What each call of the driver costs here."""
    rounds = "3" if check.is_small else "15"
    words = ("--device", check.device, "--rounds", rounds, "--out", str(check.out))
    yield check.step("driver costs", "-m", "benchmarks.cuda.driver_costs", *words, limit_s=180)


def bench(check: Check) -> Iterator[Step]:
    """mempool beside torch's allocator, as it comes and with expandable segments, in turn until the time is over."""
    words = ["--device", check.device, "--seconds", "480", "--out", str(check.out)]
    words += ["--traces", str(check.traces.resolve())] if check.traces is not None else []
    words += _SMALL_BENCHMARK if check.is_small else ()
    yield check.step("benchmark", "-m", "benchmarks.cuda.run", *words, limit_s=530)


def sanitize(check: Check) -> Iterator[Step]:
    """compute-sanitizer over every kernel: memory first, races if time is left."""
    program = cuda_toolkit.program("compute-sanitizer")
    if not check.is_real or program is None:
        why = "there is no compute-sanitizer" if check.is_real else "compute-sanitizer watches kernels on a GPU"
        yield Step("sanitize", why_not=why)
        return
    watched = (sys.executable, str(check.folder / "tests" / "gpu" / "run_kernels.py"))
    # torch's cache would hide an access behind a block's end.
    environment = {**check.environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in ("memcheck", "racecheck"):
        command = (str(program), "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *watched)
        yield Step(tool, command, 260, check.folder, environment)


STAGES: dict[str, Callable[[Check], Iterator[Step]]] = {
    "build": build,
    "test": test,
    "doctor": doctor,
    "driver-costs": driver_costs,
    "bench": bench,
    "sanitize": sanitize,
}
LIMIT_S = 535  # of a stage: machines are lent for ten minutes at a time
