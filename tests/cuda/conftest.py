"""torch's CUDA build, by itself (native/) and with mempool; MEMPOOL_TEST_DEVICE=real: on a GPU, not the stand-in."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import control
import cuda_toolkit
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
IS_REAL = os.environ.get("MEMPOOL_TEST_DEVICE", "standin") == "real"
LIBRARIES = Path(os.environ.get("CUDA_STANDIN_LIB", ROOT / "build" / "cuda_standin" / "lib"))
LOADED = None if IS_REAL else control.load(LIBRARIES)  # before anything imports torch
if LOADED is not None:
    LOADED.set_device_count(2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a GPU, tests for which there is no such machine are skipped, with the reason."""
    if not IS_REAL:
        return
    for item in items:
        if reason := _unplayable(item):
            item.add_marker(pytest.mark.skip(reason=reason))


def _unplayable(item: pytest.Item) -> str | None:
    if item.get_closest_marker("stand_in") is not None:
        return "only the stand-in plays that machine"
    if "standin" in getattr(item, "fixturenames", ()):
        return "needs the controls of the stand-in"
    needed, there = _gpus_for(item), len(_visible())
    return f"needs {needed} GPUs, and {there} can be seen" if needed > there else None


def _gpus_for(item: pytest.Item) -> int:
    mark = item.get_closest_marker("gpus")
    return 1 if mark is None else int(mark.args[0])


@functools.cache
def _visible() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return names[:count] if len(names) >= count and names[0] else [str(index) for index in range(count)]


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
    """The controls, with nothing counted."""
    assert LOADED is not None, "a test with this fixture is skipped on a GPU"
    LOADED.reset()
    yield LOADED
    LOADED.reset()
    LOADED.set_capacity(16 << 30)


@pytest.fixture
def controls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts may import the stand-in's controls."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(control.__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.fixture
def pinned() -> Iterator[None]:
    """Pinned memory from mempool, with nothing held afterwards."""
    import torch

    import mempool
    from mempool import _core

    torch.cuda.init()
    mempool.enable("pinned")
    mempool.trim("pinned")
    yield
    torch.cuda.synchronize()
    assert _core.pinned_device("").check_invariants() == ""
    mempool.trim("pinned")
    assert mempool.memory_reserved("pinned") == 0
    mempool.disable("pinned")


@pytest.fixture
def run_on_device(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Runs a script in a process of its own, on the same kind of device; returns what it prints.

    It sees as many GPUs as the test's mark says.
    """
    gpus = _gpus_for(request.node)

    def run(script: str, **environment: str) -> str:
        command = [sys.executable, "-c", script]
        if IS_REAL:
            assert not any(name.startswith("CUDA_STANDIN_") for name in environment), "the test needs its mark"
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(_visible()[:gpus])
        else:
            environment.setdefault("CUDA_STANDIN_DEVICES", str(gpus))
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
        headers = [option for each in cuda_toolkit.header_folders() for option in ("-isystem", str(each))]
        out = (tmp_path_factory.mktemp("compiled") / name).with_suffix(".so")
        command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-shared", "-fPIC"]
        command += ["-isystem", f"{folder}/include", *headers, str(Path(__file__).with_name(name))]
        command += ["-o", str(out), f"-L{folder}/lib", "-lc10", "-lc10_cuda", "-ltorch_cpu"]
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
