"""Machines of files alone, for tests of the build: a torch, CUDA's headers, an nvcc. They compile in no time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
AGAIN = ", and build mempool again"
CRT = "crt/host_config.h is missing beside cuda_runtime_api.h in"


def cmake(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("cmake", path=PATH)
    assert tool is not None, "these tests need cmake, as the build does"
    return subprocess.run(
        [tool, "-G", "Ninja", *arguments],
        env={**os.environ, "PATH": PATH, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


@dataclass
class Machine:
    """A torch of files that are empty but for what the decision reads, and folders of headers around it."""

    folder: Path
    torch: str = "2.14.1+cu130"
    cuda: str = "13.0"
    choice: str = "auto"
    headers: str = ""  # of the user
    interface: str = "int allocator();"  # torch's
    lost: str = ""  # a library that torch lacks
    system: list[str] = field(default_factory=list)
    nvcc: str | None = None  # what `nvcc --version` prints, and what the compiler then does; empty when there is none

    def write(self) -> None:
        library, include = self.folder / "site/torch/lib", self.folder / "site/torch/include"
        library.mkdir(parents=True)
        include.mkdir()
        for name in {"libc10_cuda.so", "libtorch_cuda.so"} - {self.lost}:
            (library / name).touch()
        (include / "interface.h").write_text(self.interface)
        probe = self.folder / "probe.cpp"
        probe.write_text("#include <cuda_runtime.h>\n#include <interface.h>\nint fits() { return allocator(); }\n")
        variables = {
            "MEMPOOL_CUDA": self.choice,
            "MEMPOOL_CUDA_HEADERS": self.headers,
            "torch_version": self.torch,
            "torch_cuda_version": self.cuda,
            "torch_folder": str(self.folder / "site/torch"),
            "torch_new_abi": "1",
            "torch_nvidia_folders": str(self.folder / "site/nvidia"),
            "cuda_system_folders": ";".join(self.system),
            "cuda_probe": str(probe),
        }
        if self.nvcc is not None:
            variables["MEMPOOL_NVCC"] = str(self.folder / "nvcc") if self.nvcc else ""
            version, _, then = self.nvcc.partition(";")
            script = f"#!/bin/sh\nif [ $1 = --version ]; then echo '{version}'; else {then or 'true'}; fi\n"
            (self.folder / "nvcc").write_text(script)
            (self.folder / "nvcc").chmod(0o755)
        lines = [f"set({name} [==[{value}]==])\n" for name, value in variables.items()]
        self.folder.with_name(self.folder.name + ".cmake").write_text("".join(lines))

    def runtime(self, place: str, version: int = 13000) -> str:
        """What nvidia-cuda-runtime brings."""
        where = self.folder / place
        where.mkdir(parents=True, exist_ok=True)
        (where / "cuda_runtime_api.h").write_text(f"#define CUDART_VERSION  {version}\n")
        (where / "cuda_runtime.h").write_text('#include "crt/host_config.h"\n')
        return str(where)

    def crt(self, place: str) -> str:
        """What nvidia-cuda-crt brings."""
        where = self.folder / place
        (where / "crt").mkdir(parents=True)
        (where / "crt/host_config.h").touch()
        return str(where)


# A torch that can be imported, and prints something by the way.
RUNS = """
import sys
print("a greeting")
print("a warning", file=sys.stderr)
__version__ = "2.14.1+cu130"
class version:
    cuda = "13.0"
class _C:
    _GLIBCXX_USE_CXX11_ABI = True
"""


def fake_torch(folder: Path, body: str, version: str | None = "2.14.1+cu130") -> Path:
    """A package named torch whose import runs `body`."""
    torch = folder / "torch"
    torch.mkdir(parents=True)
    if version is not None:
        (torch / "version.py").write_text(f"__version__ = '{version}'\n")
    (torch / "__init__.py").write_text(body)
    return torch
