"""What the results were found on: GPU, driver, processor, versions, the state of the sources."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import cuda_toolkit

_QUERY = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,mig.mode.current"
_PACKAGES = (
    *("torch", "numpy", "scikit-build-core", "pybind11", "cmake", "ninja"),
    *("pytest", "pytest-timeout", "pytest-xdist", "click", "rich"),
)
_ANSWER_S = 60


def facts(root: Path) -> dict[str, Any]:
    """All by name; None for what cannot be found out."""
    nvcc = cuda_toolkit.program("nvcc")
    sanitizer = cuda_toolkit.program("compute-sanitizer")
    return {
        "gpus": _said("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "compiler": (_said(os.environ.get("CXX", "c++"), "--version") or "").partition("\n")[0] or None,
        "nvcc": (_said(str(nvcc), "--version") or "").rpartition("\n")[2] or None if nvcc else None,
        "compute_sanitizer": str(sanitizer) if sanitizer else None,
        "commit": _said("git", "-C", str(root), "describe", "--always", "--dirty=+changes"),
        "executable": sys.executable,
    }


def _said(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_ANSWER_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str | None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
