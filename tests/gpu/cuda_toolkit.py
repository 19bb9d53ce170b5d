"""Where CUDA's headers and programs lie on this machine: for the build, for C++ in tests, and for benchmarks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FETCHED = ROOT / "build" / "cuda_toolkit" / "nvidia" / "cu13"  # made by `make standin`
_DRY_RUN_S = 60


class ToolkitError(RuntimeError):
    """CUDA's headers are not whole, or not there."""


def roots() -> Iterator[Path]:
    """Folders that may hold a toolkit, the one that was asked for first."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name])
    yield FETCHED
    if asked := _root_of_nvcc():
        yield asked
    yield Path("/usr/local/cuda")
    yield from sorted(Path("/usr/local").glob("cuda-*"), reverse=True)
    yield from (Path(each) for each in ("/opt/cuda", "/usr/lib/cuda", "/usr"))
    yield from _packages()


def header_folders() -> list[Path]:
    """The folders to include: one with all of CUDA's headers, or two that together have them.

    torch's own packages bring cuda_runtime_api.h without the folder crt, which that header includes; another package or
    a toolkit may have it. `$CUDA_INCLUDE` comes before all that is found. Raises ToolkitError.
    """
    if asked := os.environ.get("CUDA_INCLUDE"):
        return [Path(each).resolve() for each in asked.split(os.pathsep)]
    folders = [root / below for root in roots() for below in ("include", "targets/x86_64-linux/include")]
    folders = [folder for folder in folders if folder.is_dir()]
    runtime = [folder for folder in folders if (folder / "cuda_runtime_api.h").exists()]
    crt = [folder for folder in folders if (folder / "crt" / "host_config.h").exists()]
    for folder in runtime:
        if folder in crt:
            return [folder.resolve()]
    if runtime and crt:
        return [runtime[0].resolve(), crt[0].resolve()]
    missing = "crt/host_config.h beside cuda_runtime_api.h" if runtime else "cuda_runtime_api.h"
    raise ToolkitError(f"CUDA's headers are not here: no {missing}. Name their folder with CUDA_INCLUDE.")


def program(name: str) -> Path | None:
    """A program of the toolkit (nvcc, cuobjdump, compute-sanitizer): of PATH, or of a toolkit that is found."""
    if found := shutil.which(name):
        return Path(found)
    folders = [root / below for root in roots() for below in ("bin", "compute-sanitizer", "extras/compute-sanitizer")]
    return next((folder / name for folder in folders if os.access(folder / name, os.X_OK)), None)


def _root_of_nvcc() -> Path | None:
    """The toolkit of the nvcc on PATH. It is asked: what is on PATH may be a wrapper that lies elsewhere."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_DRY_RUN_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"^#\$ TOP=(.+)$", done.stderr + done.stdout, re.MULTILINE)
    return Path(found[1].strip()) if found else None


def _packages() -> Iterator[Path]:
    """The folders of NVIDIA's Python packages beside torch: cu13, or one for each package of CUDA 12."""
    from importlib.util import find_spec

    spec = find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec is not None else ():
        yield from sorted(path for path in Path(place).iterdir() if path.is_dir())
