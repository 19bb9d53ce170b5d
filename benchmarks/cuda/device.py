"""The device of one process of the benchmark, torch on it, and the allocator under torch.

A GPU and the stand-in have one interface. What only one of them can tell is asked for by name: the stand-in counts
every call of the driver, a GPU runs kernels.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cuda_standin"))
import control  # noqa: E402

CALLS = (
    *("cudaMalloc", "cudaFree", "cuMemAddressReserve", "cuMemAddressFree", "cuMemCreate", "cuMemMap"),
    *("cuMemSetAccess", "cuMemUnmap", "cuMemRelease"),
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
)
PLENTY = 80 << 30  # bytes of the stand-in, where a task sets no end
MIB, GIB = 1 << 20, 1 << 30


class DeviceMissing(RuntimeError):
    """The device that was asked for is not the one that torch sees."""


def is_stand_in() -> bool:
    """Whether the driver that this process has loaded, or would load, is the stand-in."""
    try:
        return hasattr(ctypes.CDLL("libcuda.so.1"), "standin_count")
    except OSError:
        return False


@dataclass(frozen=True)
class Measured:
    """Wall time until the device was done, the calls for it without the benchmark's own, and the result."""

    seconds: float
    calls: int
    result: Any


class Device(ABC):
    """torch on cuda:0 with one of the allocators, and the compiled loops."""

    kind: str
    # What `calls` counts. The figure of a GPU is torch's own: each allocator says what it takes for a call.
    calls_name: str
    runs_kernels: bool

    def __init__(self, side: str, loops: str | None = None) -> None:
        """`side`: one of SIDES. Raises DeviceMissing."""
        self.side = side
        if side == "expandable":
            os.environ["PYTORCH_ALLOC_CONF"] = os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        self._before_torch()
        import torch

        self.torch = torch
        self._check()
        if side == "mempool":
            import mempool

            mempool.enable("cuda")
        torch.cuda.init()
        backend = torch.cuda.memory.get_allocator_backend()
        assert (backend == "native") == (side != "mempool"), f"{backend} is under torch, not {side}"
        torch.zeros(1, device="cuda")  # makes the context, which is not measured
        torch.cuda.synchronize()
        if loops is not None:
            self.loops = _loaded(loops)

    @abstractmethod
    def _before_torch(self) -> None: ...

    @abstractmethod
    def _check(self) -> None: ...

    @abstractmethod
    def limit(self, nbytes: int | None) -> None:
        """Bytes that the allocator may hold from now on; None: all that the device has."""

    @abstractmethod
    def calls(self) -> int:
        """Those that take, give back or wait for memory, so far."""

    @property
    def total_bytes(self) -> int:
        return int(self.torch.cuda.get_device_properties(0).total_memory)

    def scaled(self, nbytes: int, scale: float) -> int:
        """A size of a workload: not above half of this device, in whole MiB."""
        return max(64, int(min(nbytes * scale, self.total_bytes / 2)) // MIB) * MIB

    def block(self, nbytes: int) -> Any:
        return self.torch.empty(nbytes, dtype=self.torch.uint8, device="cuda")

    def empty(self) -> None:
        """Frees what a replay has left, and the cache."""
        self.loops.free_blocks()
        self.torch.cuda.synchronize()
        self.torch.cuda.empty_cache()

    def measured(self, call: Callable[[], Any]) -> Measured:
        """Makes a call on a device that is idle, and waits until the device is done."""
        self.torch.cuda.synchronize()
        before, begun = self.calls(), time.perf_counter()
        result = call()
        calls = self.calls() - before
        self.torch.cuda.synchronize()
        return Measured(time.perf_counter() - begun, calls, result)

    def facts(self) -> dict[str, Any]:
        properties = self.torch.cuda.get_device_properties(0)
        return {
            "kind": self.kind,
            "name": properties.name if self.kind == "real" else "stand-in: no GPU",
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": self.total_bytes,
            "torch": self.torch.__version__,
            "cuda": self.torch.version.cuda,
            "driver": _driver_version(),
        }


class StandIn(Device):
    """The stand-in: kernels do nothing, copies do, and every call is counted."""

    kind = "stand-in"
    calls_name = "driver_calls"
    runs_kernels = False

    def _before_torch(self) -> None:
        folder = Path(os.environ.get("CUDA_STANDIN_LIB", ROOT / "build" / "cuda_standin" / "lib"))
        if not folder.is_dir():
            raise DeviceMissing(f"there is no stand-in in {folder}: run `make standin`")
        self.controls = control.load(folder)
        self.controls.set_capacity(PLENTY)

    def _check(self) -> None:
        self.torch.backends.cudnn.enabled = False
        self.torch.backends.cuda.enable_cudnn_sdp(False)

    def limit(self, nbytes: int | None) -> None:
        self.controls.set_capacity(PLENTY if nbytes is None else nbytes)

    def calls(self) -> int:
        return sum(self.controls.count(name) for name in CALLS)


class Gpu(Device):
    """A GPU."""

    kind = "real"
    calls_name = "device_allocs_and_frees"
    runs_kernels = True

    def _before_torch(self) -> None:
        if is_stand_in():
            raise DeviceMissing("a GPU was asked for, and the driver that is loaded is the stand-in")

    def _check(self) -> None:
        if not self.torch.cuda.is_available():
            raise DeviceMissing("a GPU was asked for, and torch sees none")
        if is_stand_in():
            raise DeviceMissing("a GPU was asked for, and torch runs on the stand-in")

    def limit(self, nbytes: int | None) -> None:
        share = 1.0 if nbytes is None else min(1.0, nbytes / self.total_bytes)
        self.torch.cuda.set_per_process_memory_fraction(share)

    def calls(self) -> int:
        stats = self.torch.cuda.memory_stats()
        return int(stats["num_device_alloc"] + stats["num_device_free"])


def open_device(kind: str, side: str, loops: str | None = None) -> Device:
    """The device of that kind, for this process. Raises DeviceMissing where it is not there."""
    return {"real": Gpu, "stand-in": StandIn}[kind](side, loops)


def _loaded(path: str) -> ctypes.CDLL:
    loops = ctypes.CDLL(path)
    loops.replay.restype = loops.pairs.restype = ctypes.c_double
    pointer = ctypes.c_void_p
    loops.replay.argtypes = [*([pointer] * 4), ctypes.c_int64, ctypes.c_int64, pointer]
    loops.pairs.argtypes = [ctypes.c_size_t, ctypes.c_int64]
    return loops


def _driver_version() -> str:
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"
