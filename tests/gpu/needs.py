"""What a stage needs of this machine, and what of it is missing. Nothing but the standard library is imported here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

# Modules that every stage imports, and those that only the build does.
ALWAYS = ("torch", "numpy", "pytest", "click", "rich")
BUILD = ("scikit_build_core", "pybind11")
BUILD_PROGRAMS = ("cmake", "ninja")
_PROBE_S = 120
_PROBE = """
import torch
print(torch.version.cuda, flush=True)
print(*torch.cuda.get_device_capability(0))
"""


def path_with_scripts() -> str:
    """PATH, with the programs of this Python's environment before all others."""
    return os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])


def missing(is_built_here: bool, is_real: bool) -> list[str]:
    """What has to be installed before anything can run, in words that a package or a program is found by."""
    out = missing_modules([*ALWAYS, *(BUILD if is_built_here else ())])
    programs = [*(BUILD_PROGRAMS if is_built_here else ()), os.environ.get("CXX", "c++")]
    out += [name for name in programs if shutil.which(name, path=path_with_scripts()) is None]
    if is_real and not out and (problem := gpu_problem()):
        out.append(problem)
    if not is_real and not (lib := stand_in()).is_dir():
        out.append(f"stand-in in {lib} (make standin)")
    return out


def missing_modules(names: Iterable[str] = ALWAYS) -> list[str]:
    """Those that this Python cannot import."""
    return [name for name in names if find_spec(name) is None]


def stand_in() -> Path:
    """The folder of the stand-in's libraries."""
    root = Path(__file__).resolve().parents[2]
    return Path(os.environ.get("CUDA_STANDIN_LIB", root / "build" / "cuda_standin" / "lib"))


def gpu_problem() -> str | None:
    """Why torch cannot use a GPU here, asked in a process of its own: a broken driver may hang or crash."""
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_S)
    except subprocess.TimeoutExpired:
        return f"driver that answers (torch found no GPU within {_PROBE_S} s)"
    words = done.stdout.split()
    if words[:1] == ["None"]:
        return "CUDA build of torch (this one is for the CPU)"
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no word"]
        return f"GPU that torch can use ({last[0]})"
    return None


def capability() -> str:
    """The compute capability of the first GPU, without the dot."""
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_S, check=True)
    return "".join(done.stdout.split()[-2:])


def sentence(names: Iterable[str]) -> str:
    """The one sentence that says what is missing."""
    return f"gpu-check: with {sys.executable} there is no {', no '.join(names)}; PYTHON=… names another Python."
