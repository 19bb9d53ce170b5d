"""Every barrier and every wait of the CUDA kernels is needed: a copy of the sources without it fails its test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
EMULATOR = ROOT / "tests" / "cuda_emulator"
CUDA = ROOT / "csrc" / "kernels" / "cuda"
KERNELS = sorted(CUDA.glob("*.cu"))
WAITS = re.compile(r"(?<!void )(__syncthreads\(\)|__syncwarp\(\)|wait_for_copies<[^>]*>\(\));")
COMPILER = [os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-ffp-contract=off", "-w"]


@dataclass(frozen=True)
class Mutant:
    """A source without one statement, and the kernel whose test has to find it."""

    source: Path
    line: int
    statement: str
    kernel: Path

    def __str__(self) -> str:
        return f"{self.kernel.stem}: {self.source.name}:{self.line} without {self.statement}"


def _includes(source: Path, header: Path) -> bool:
    included = re.findall(r'"kernels/cuda/(\w+\.h)"', source.read_text())
    return header.name in included or any(_includes(CUDA / name, header) for name in included)


def _mutants() -> list[Mutant]:
    found = []
    for source in [*KERNELS, *sorted(CUDA.glob("*.h"))]:
        if source.name == "ptx.h":  # says what they are
            continue
        kernels = [source] if source in KERNELS else [kernel for kernel in KERNELS if _includes(kernel, source)]
        for number, line in enumerate(source.read_text().splitlines(), start=1):
            for match in WAITS.finditer(line):
                found += [Mutant(source, number, match.group(1), kernel) for kernel in kernels]
    return found


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def _compile(source: Path, to: Path, *includes: Path) -> Path:
    flags = [f"-I{folder}" for folder in (*includes, EMULATOR / "include", EMULATOR, ROOT / "csrc", ROOT / "tests/cpp")]
    _run(*COMPILER, *flags, "-x", "c++", "-c", source, "-o", to)
    return to


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What a test program is linked of, by the stem of its source; and the library."""
    libraries = sorted(ROOT.glob("build/cp*/libmempool.so"), key=lambda path: path.stat().st_mtime)
    if not libraries:
        pytest.skip("needs the build folder that the package was installed from")
    folder = tmp_path_factory.mktemp("objects")
    sources = [
        ROOT / "tests/cpp/main.cpp",
        EMULATOR / "emulator.cpp",
        *(EMULATOR / "tests" / f"test_{name}.cpp" for name in ("dense", "quantize", "sparse")),
        *KERNELS,
    ]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda source: _compile(source, folder / f"{source.stem}.o"), sources))
    return {path.stem: path for path in made} | {"library": libraries[-1]}


def _test_of(kernel: str, objects: dict[str, Path], to: Path, timeout: float = 240) -> int:
    """The exit status of a kernel's test; one that never ends is ended."""
    library = objects["library"].parent
    files = [path for name, path in objects.items() if name != "library"]
    _run(*COMPILER[:1], *files, f"-L{library}", "-lmempool", f"-Wl,-rpath,{library}", "-o", to)
    try:
        return subprocess.run([to, f"{kernel}_is_exact"], capture_output=True, timeout=timeout, check=False).returncode
    except subprocess.TimeoutExpired:
        return -1


@pytest.mark.timeout(900)
def test_every_barrier_and_wait_is_needed(objects: dict[str, Path], tmp_path: Path) -> None:
    mutants = _mutants()
    assert {mutant.kernel for mutant in mutants} >= set(KERNELS), "each kernel has a barrier"

    def survives(numbered: tuple[int, Mutant]) -> bool:
        number, mutant = numbered
        folder = tmp_path / str(number)
        copies = folder / "kernels" / "cuda"
        shutil.copytree(CUDA, copies)
        copy = copies / mutant.source.name
        lines = copy.read_text().splitlines(keepends=True)
        assert mutant.statement in lines[mutant.line - 1]
        lines[mutant.line - 1] = lines[mutant.line - 1].replace(mutant.statement, "static_cast<void>(0)")
        copy.write_text("".join(lines))
        made = _compile(copies / mutant.kernel.name, folder / "mutant.o", folder)
        return _test_of(mutant.kernel.stem, objects | {mutant.kernel.stem: made}, folder / "test") == 0

    with ThreadPoolExecutor(2) as pool:
        survived = [str(m) for m, s in zip(mutants, pool.map(survives, enumerate(mutants)), strict=True) if s]
    assert not survived


def test_what_is_not_mutated_passes(objects: dict[str, Path], tmp_path: Path) -> None:
    for kernel in KERNELS:
        assert _test_of(kernel.stem, objects, tmp_path / kernel.stem) == 0, kernel.name
