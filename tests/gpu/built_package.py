"""The package for this machine: a wheel, with kernels for its GPU, unpacked where nothing has to be installed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import cuda_toolkit
import needs
from steps import Step

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "gpu"
FOLDER = WORK / "package"  # what PYTHONPATH names
TREE = WORK / "tree"  # the tests and benchmarks, and the working directory
_BUILD_S = 480
# Python's own interface of build backends: pip may not be there.
_BUILD = """
import json, sys
from scikit_build_core.build import build_wheel
print(build_wheel(sys.argv[1], json.loads(sys.argv[2])))
"""
_CHECK = """
import sys
from pathlib import Path
import torch, mempool
from mempool import _build, ops
assert Path(mempool.__file__).is_relative_to(sys.argv[1]), f"this Python has a mempool of its own, {mempool.__file__}"
mempool.enable("cuda")  # says what is wrong with the CUDA half
assert not ops.CUDA_PROBLEM, ops.CUDA_PROBLEM
x = torch.ones(1 << 20, device="cuda")
print("sum", float((x + x).sum()), "by", torch.cuda.memory.get_allocator_backend(), mempool.memory_allocated("cuda"))
print("mempool", mempool.__version__, "for torch", *_build.supported_torches(), "in", sys.argv[1])
"""


def is_there() -> bool:
    """Whether `steps` has made it."""
    return (FOLDER / "mempool" / "__init__.py").exists()


def environment() -> dict[str, str]:
    """Variables of a process that is to import it."""
    path = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), "PATH": needs.path_with_scripts()}


def steps(out: Path, wheel: Path | None, play: tuple[str, ...]) -> Iterator[Step]:
    """Builds the wheel into `out`, unless there is one, unpacks it and uses it once. `play`: stands before Python."""
    if wheel is None:
        shutil.rmtree(FOLDER, ignore_errors=True)
        yield _build_step(out)
        wheel = max(out.glob("mempool-*.whl"), key=lambda path: path.stat().st_mtime)
    yield unpack_step(wheel)
    check = (*play, sys.executable, "-c", _CHECK, str(FOLDER))
    yield Step("check", check, limit_s=120, cwd=WORK, environment=environment(), is_needed=True)


def unpack_step(wheel: Path) -> Step:
    """Puts a wheel's files in their place; it is kept."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    command = (sys.executable, "-m", "zipfile", "-e", str(wheel.resolve()), str(FOLDER))
    return Step("unpack", command, cwd=WORK, is_needed=True)


def _build_step(out: Path) -> Step:
    nvcc = cuda_toolkit.program("nvcc")
    try:
        headers = cuda_toolkit.header_folders()
    except cuda_toolkit.ToolkitError as error:
        return Step("build", why_not=str(error), is_needed=True)
    if nvcc is None:
        return Step("build", why_not="there is no nvcc: add it to PATH, or name a wheel with WHEEL=", is_needed=True)
    settings = {
        "build-dir": str(WORK / "build"),
        "cmake.define.MEMPOOL_CUDA": "on",
        "cmake.define.MEMPOOL_CUDA_EMULATOR": "OFF",
        "cmake.define.MEMPOOL_CUDA_HEADERS": ";".join(map(str, headers)),
        "cmake.define.MEMPOOL_NVCC": str(nvcc),
        "cmake.define.MEMPOOL_CUDA_ARCHITECTURES": needs.capability(),
        "cmake.define.MEMPOOL_WERROR": "OFF",  # its compiler may be newer than all that mempool was developed with
    }
    command = (sys.executable, "-c", _BUILD, str(out.resolve()), json.dumps(settings))
    cores = {"CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0))), "PATH": needs.path_with_scripts()}
    return Step("build", command, limit_s=_BUILD_S, cwd=ROOT, environment=cores, is_needed=True)
