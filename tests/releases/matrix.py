"""mempool with many releases of torch: one wheel for all of them, and the tests with each.

    python tests/releases/matrix.py wheel                              # dist/, for every release that is pinned here
    python tests/releases/matrix.py test --run imports 2.9.1 2.15.0    # what CI does
    python tests/releases/matrix.py test --run cpu 2.9.1 2.15.0        # all tests of the CPU
    python tests/releases/matrix.py test --run cuda 2.11.0             # those of CUDA, on the stand-in
    python3.12 tests/releases/matrix.py test …                         # the same for that Python

Each release has an environment of its own, build/releases/torch-X-pyY. torch is installed without the packages of
NVIDIA that it depends on: tests/cuda_standin plays them, with no device where the CPU is tested. The wheel is built
once for all releases that are named, and installed from the file, as a user would.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import wheels

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests" / "gpu"))
import source_tree  # noqa: E402

BUILD = ROOT / "build" / "releases"
TOOLKIT = ROOT / "build" / "cuda_toolkit" / "nvidia" / "cu13"  # made by `make standin`
PYTHON = f"py{sys.version_info[0]}.{sys.version_info[1]}"
PINNED = [path.stem.removeprefix("torch-") for path in HERE.glob("torch-*.txt")]
CUDA_SINCE = (2, 11)  # the oldest release that the CUDA half is built for
# Imports every package of mempool, serves tensors under a limit, and runs a packed layer.
IMPORTS = """
import torch, mempool, mempool.nn, mempool.compress, mempool.checkpoint
mempool.enable("cpu", limit="1GiB")
x = torch.ones(1 << 20) + 1
assert x.sum() == 2 << 20 and mempool.memory_allocated() >= 4 << 20
try: torch.empty(2 << 30, dtype=torch.uint8)
except mempool.OutOfMemoryError as error: assert mempool.oom_info(error)
layer = torch.nn.Linear(64, 64)
packed = mempool.nn.Int8Linear.from_linear(layer)
x = torch.randn(4, 64)
assert torch.nn.functional.cosine_similarity(packed(x), layer(x)).min() > 0.99
print("imported with torch", torch.__version__, "by", mempool.__file__)
"""


def order(release: str) -> tuple[int, ...]:
    """``"2.9.1"`` -> ``(2, 9, 1)``."""
    return tuple(int(part) for part in release.split("."))


def say(command: Iterable[object], *, is_quiet: bool = False, **environment: str) -> None:
    """Runs a command at the root of the sources; CalledProcessError where it fails."""
    words = [str(word) for word in command]
    output = subprocess.DEVNULL if is_quiet else None
    subprocess.run(words, check=True, cwd=ROOT, env={**os.environ, **environment}, stdout=output)


@dataclass(frozen=True)
class Environment:
    """A virtual environment with one release of torch, for the Python that runs this."""

    release: str

    @property
    def folder(self) -> Path:
        return BUILD / f"torch-{self.release}-{PYTHON}"

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def torch(self) -> Path:
        """The package of torch."""
        return next(self.folder.glob("lib/python3*/site-packages")) / "torch"

    @property
    def has_cuda(self) -> bool:
        """Whether the CUDA half is built for this release, and the stand-in plays its CUDA."""
        return order(self.release) >= CUDA_SINCE

    @property
    def standin(self) -> Path:
        return self.folder / "standin"

    def make(self) -> None:
        """Once: installs all but mempool, and builds the stand-in."""
        stamp = self.folder / "made"
        if stamp.exists():
            return
        say([sys.executable, "-m", "venv", "--clear", self.folder])
        pip = [self.python, "-m", "pip", "install", "-q"]
        say([*pip, "-r", HERE / "needs.txt"])
        # The release is the one that is pinned here, whatever a constraint of this machine's pip allows.
        torch = ["--no-deps", "accelerate>=1", "-r", HERE / f"torch-{self.release}.txt"]
        say([*pip, *torch], PIP_CONSTRAINT=os.devnull)
        stamp.touch()

    def play(self, cuda_include: Path) -> dict[str, str]:
        """Builds the stand-in for this torch; the environment in which tests/cuda_standin/run takes it."""
        tools = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        defines = {"CUDA_INCLUDE": cuda_include, "TORCH_LIB": self.torch / "lib", "PYTHON": self.python}
        configure = ["cmake", "-S", "tests/cuda_standin", "-B", self.standin, "-G", "Ninja"]
        say([*configure, *(f"-D{name}={value}" for name, value in defines.items())], PATH=tools, is_quiet=True)
        say(["ninja", "-C", self.standin, "--quiet"], PATH=tools)
        return {"CUDA_STANDIN_LIB": str(self.standin / "lib")}


def made(releases: list[str]) -> list[Environment]:
    """The environments of these releases, the oldest first."""
    environments = [Environment(release) for release in sorted(releases, key=order)]
    for each in environments:
        each.make()
    return environments


def build_wheel(environments: list[Environment], out: Path, build: Path, defines: dict[str, object]) -> Path:
    """One wheel for the torches of all these environments; its path."""
    # The interpreter that runs this builds where it can: a build of its own, made before, is then built on.
    has_tools = all(importlib.util.find_spec(name) for name in ("scikit_build_core", "pybind11", "ninja", "cmake"))
    python = Path(sys.executable) if has_tools else environments[0].python
    settings = {"build-dir": build, "cmake.define.MEMPOOL_TORCHES": ";".join(str(each.torch) for each in environments)}
    settings |= {f"cmake.define.{name}": value for name, value in defines.items()}
    for path in out.glob("mempool-*.whl"):
        path.unlink()
    say(
        [python, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", out, "."]
        + [f"--config-settings={name}={value}" for name, value in settings.items()],
        PATH=f"{python.parent}:{os.environ['PATH']}",
        CMAKE_BUILD_PARALLEL_LEVEL=str(os.cpu_count()),
    )
    return next(out.glob("mempool-*.whl"))


def commands(environment: Environment, run: str) -> Iterator[list[str]]:
    """What `run` means for an environment."""
    pytest = [str(environment.folder / "bin" / "pytest"), "-q", "-p", "no:cacheprovider", "-n", str(os.cpu_count())]
    if run == "imports":
        yield ["tests/cuda_standin/run", str(environment.python), "-c", IMPORTS]
    elif run == "cpu":
        yield ["tests/cuda_standin/run", *pytest, "tests/python"]
    else:
        yield [*pytest, "tests/cuda/native"]
        yield [*pytest, "tests/cuda", "--ignore=tests/cuda/native"]


def test(releases: list[str], runs: list[str], toolkit: Path, build: Path) -> list[dict[str, object]]:
    """Builds the wheel, installs it for each release and runs the tests there; a row of results for each run."""
    environments = made(releases)
    include = toolkit / "include"
    nvcc = toolkit / "bin" / "nvcc"
    defines: dict[str, object] = {"MEMPOOL_CUDA": "off"}
    if "cuda" in runs:
        defines = {"MEMPOOL_CUDA": "auto", "MEMPOOL_CUDA_HEADERS": include, "MEMPOOL_NVCC": nvcc}
        defines |= {"MEMPOOL_CUDA_EMULATOR": "ON"}
    wheel = build_wheel(environments, BUILD / PYTHON, build, defines)
    if importlib.util.find_spec("auditwheel"):
        wheel = wheels.name_platform(wheel)
    tree = source_tree.copy_without_package(ROOT, BUILD / "tree")
    rows = []
    for each in environments:
        playing = {"CUDA_INCLUDE": str(include), **each.play(include)}
        say([each.python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel])
        for run in runs if each.has_cuda else [name for name in runs if name != "cuda"]:
            began = time.monotonic()
            devices = {} if run == "cuda" else {"CUDA_STANDIN_DEVICES": "0"}
            environment = {**os.environ, **playing, **devices}
            codes = [
                subprocess.run(command, cwd=tree, env=environment, check=False).returncode
                for command in commands(each, run)
            ]
            row = {"torch": each.release, "python": PYTHON.removeprefix("py"), "run": run, "passed": not any(codes)}
            rows.append(row | {"seconds": round(time.monotonic() - began)})
    return rows


def main() -> int:
    """Reads the command line; the status is 1 where a test has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["wheel", "test"])
    parser.add_argument("releases", nargs="*", help="of torch; all that are pinned in this folder, if none is named")
    parser.add_argument(
        "--run", default="cpu,cuda", help="what of the tests: imports, cpu, cuda, or several with commas"
    )
    parser.add_argument(
        "--toolkit", type=Path, default=ROOT / "build/cuda_toolkit/nvidia/cu13", help="CUDA's, for nvcc"
    )
    parser.add_argument("--build", type=Path, help="folder of CMake's build; one that is there is built on")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the wheel goes")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    given = parser.parse_intermixed_args()
    releases = given.releases or PINNED
    unknown = sorted(set(releases) - set(PINNED))
    if unknown:
        parser.error(f"no file torch-{unknown[0]}.txt in {HERE}: there are {', '.join(sorted(PINNED, key=order))}")
    if given.command == "wheel":
        environments = made(releases)
        defines = {"MEMPOOL_CUDA_HEADERS": given.toolkit / "include", "MEMPOOL_NVCC": given.toolkit / "bin" / "nvcc"}
        path = build_wheel(environments, given.out, given.build or BUILD / f"wheel-{PYTHON}", defines)
        path = wheels.name_platform(path)
        print(path if not given.json else json.dumps({"wheel": str(path)}))
        return 0
    runs = given.run.split(",")
    if not set(runs) <= {"imports", "cpu", "cuda"}:
        parser.error(f"--run is imports, cpu, cuda, or several of them with commas between, not {given.run!r}")
    rows = test(releases, runs, given.toolkit, given.build or BUILD / f"test-{PYTHON}")
    if given.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            verdict = "passed" if row["passed"] else "FAILED"
            print("torch {torch:8} Python {python:5} {run:8} {verdict} in {seconds} s".format(verdict=verdict, **row))
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
