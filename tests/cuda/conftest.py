"""torch's CUDA build, by itself (native/) and with mempool; MEMPOOL_TEST_DEVICE=real: on a GPU, not the stand-in."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import control
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
IS_REAL = os.environ.get("MEMPOOL_TEST_DEVICE", "standin") == "real"
LIBRARIES = Path(os.environ.get("CUDA_STANDIN_LIB", ROOT / "build" / "cuda_standin" / "lib"))
LOADED = None if IS_REAL else control.load(LIBRARIES)  # before anything imports torch
if LOADED is not None:
    LOADED.set_device_count(2)


@pytest.fixture(scope="session", autouse=True)
def device() -> None:
    """What torch must be told where kernels do nothing."""
    import torch

    if not IS_REAL:
        torch.backends.cudnn.enabled = False
        torch.backends.cuda.enable_cudnn_sdp(False)
    assert torch.cuda.is_available()


@pytest.fixture
def standin() -> Iterator[control.Standin]:
    """The controls, with nothing counted; tests that need them are skipped on a GPU."""
    if LOADED is None:
        pytest.skip("needs the controls of the stand-in")
    LOADED.reset()
    yield LOADED
    LOADED.reset()
    LOADED.set_capacity(16 << 30)


@pytest.fixture
def run_on_device() -> Callable[..., str]:
    """Runs a script in a process of its own, on the same kind of device; returns what it prints."""

    def run(script: str, **environment: str) -> str:
        command = [sys.executable, "-c", script]
        if not IS_REAL:
            command = [str(Path(control.__file__).parent / "run"), *command]
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compiles a C++ file beside this one for the torch of this environment; returns the library."""
    import torch

    def compile_file(name: str) -> Path:
        folder = Path(torch.__file__).parent
        headers = os.environ.get("CUDA_INCLUDE", str(ROOT / "build" / "cuda_toolkit" / "nvidia" / "cu13" / "include"))
        out = (tmp_path_factory.mktemp("compiled") / name).with_suffix(".so")
        command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-shared", "-fPIC"]
        command += ["-isystem", f"{folder}/include", "-isystem", headers, str(Path(__file__).with_name(name))]
        command += ["-o", str(out), f"-L{folder}/lib", "-lc10", "-lc10_cuda"]
        subprocess.run(command, check=True)
        return out

    return compile_file


@pytest.fixture(scope="session")
def calls(compiled: Callable[[str], Path]) -> ctypes.CDLL:
    """The functions of calls.cpp."""
    library = ctypes.CDLL(str(compiled("calls.cpp")))
    for name in ("cache_info", "expandable_bytes", "base_allocation"):
        getattr(library, name).restype = ctypes.c_size_t
    library.base_allocation.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)]
    if hasattr(library, "allocate_with_address"):
        library.allocate_with_address.argtypes = [ctypes.c_size_t, ctypes.c_void_p]
    return library


def _hold_nothing() -> None:
    import torch

    torch._C._cuda_clearCublasWorkspaces()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


@pytest.fixture
def enabled() -> Iterator[None]:
    """mempool under CUDA tensors, with nothing held before and after."""
    import mempool

    mempool.enable("cuda")
    _hold_nothing()
    yield
    _hold_nothing()
