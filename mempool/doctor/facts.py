"""What mempool stands on here: versions, instruction sets, huge pages, CUDA."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Any

import torch

from mempool import _build, _core, _torch_cpu
from mempool._build import __version__
from mempool._device_cuda import CUDA

# What the compressed-weight kernels ask for, in the names of /proc/cpuinfo.
_ISA = ("avx2", "avx512f", "avx512bw", "avx512_vnni", "avx512_vbmi2", "amx_int8", "asimddp", "i8mm")


def gather() -> dict[str, Any]:
    """Everything by name; bytes where a name ends so, None where something is not there."""
    problem = CUDA.problem()
    return {
        "mempool": __version__,
        "built_for_torch": _build.supported_torches(),
        "newest_tested_torch": _torch_cpu.newest_tested_torch,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cuda_extension": CUDA.has_extension(),
        "cuda_problem": problem,
        "cuda_driver": _driver_version() if problem is None else None,
        "cuda_devices": _cuda_devices() if problem is None else [],
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpu": _cpu_field("model name"),
        "cores": len(os.sched_getaffinity(0)),
        "kernels": _kernels(),
        "isa": [name for name in _ISA if name in (_cpu_field("flags") or _cpu_field("Features")).split()],
        "usable_memory_bytes": _core.usable_memory_bytes(),
        "huge_pages": _core.huge_pages_available(),
        "huge_page_bytes": _core.huge_page_bytes() or None,
        "page_bytes": _core.page_bytes(),
        "max_map_count": _read("/proc/sys/vm/max_map_count"),
        "mempool_conf": os.environ.get("MEMPOOL_CONF"),
        "mempool_enable": os.environ.get("MEMPOOL_ENABLE"),
    }


def _kernels() -> str:
    """The set of kernels that packed layers run on, or why there is none."""
    try:
        return _core.kernel_isa()
    except _core.ConfigError as error:
        return str(error)


def _cuda_devices() -> list[dict[str, Any]]:
    out = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        out.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
            }
        )
    return out


def _driver_version() -> str | None:
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _cpu_field(name: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
