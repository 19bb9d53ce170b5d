"""Loads the stand-in into a process and steers it: counters, log, capacity, failures, latency, streams.

    import control
    standin = control.load(folder)      # before torch is imported
    with standin.logged() as calls: ...
    standin.fail("cuMemCreate", nth=3, error=control.OUT_OF_MEMORY)

Streams are given as torch streams, or as the number that `torch.cuda.Stream.cuda_stream` is.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY
INVALID_VALUE = 1

PLAYED = ("libcudart.so.13", "libcuda.so.1", "libnvidia-ml.so.1")  # the first brings the others' symbols


class StandinError(RuntimeError):
    """A control call named a stream that does not exist."""


@dataclass(frozen=True)
class Live:
    """What was made and not given back."""

    handles: int
    mappings: int
    reservations: int
    streams: int


def load(folder: str | os.PathLike[str]) -> Standin:
    """Loads every library of the stand-in so that torch finds these instead of others."""
    libraries = sorted(path.name for path in Path(folder).glob("lib*.so*"))
    first = None
    for name in (*PLAYED, *(each for each in libraries if each not in PLAYED)):
        library = ctypes.CDLL(str(Path(folder) / name), mode=ctypes.RTLD_GLOBAL)
        first = first or library
    assert first is not None
    return Standin(first)


def handle_of(stream: Any) -> int:
    """The number of a stream; the default stream's is 0."""
    return int(getattr(stream, "cuda_stream", stream))


class Standin:
    """The controls of a loaded stand-in; all of them may be used at any time, from any thread."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """`library`: libcudart.so.13 of the stand-in."""
        self.runtime = library
        size, count, text = ctypes.c_size_t, ctypes.c_uint64, ctypes.c_char_p
        stream, address = ctypes.c_void_p, ctypes.c_void_p
        shapes: dict[str, tuple[Any, list[Any]]] = {
            "reset_calls": (None, []),
            "count": (count, [text]),
            "counts": (size, [text, size]),
            "fail": (None, [text, count, ctypes.c_int]),
            "set_latency": (None, [text, count]),
            "charged_ns": (count, []),
            "set_logged": (None, [ctypes.c_int]),
            "take_log": (size, [text, size]),
            "set_device_count": (None, [ctypes.c_int]),
            "set_manages_virtual_memory": (None, [ctypes.c_int]),
            "set_capacity": (None, [ctypes.c_int, size]),
            "used": (size, [ctypes.c_int]),
            "peak": (size, [ctypes.c_int]),
            "reset_peak": (None, [ctypes.c_int]),
            "pinned": (size, []),
            "live": (None, [ctypes.POINTER(size)]),
            "hold": (ctypes.c_int, [stream, ctypes.c_int]),
            "step": (size, [stream, size]),
            "pending": (size, [stream]),
            "write_later": (ctypes.c_int, [stream, address, size, count]),
            "check_later": (ctypes.c_int, [stream, address, size, count]),
            "violations": (count, []),
        }
        for name, (result, arguments) in shapes.items():
            function = getattr(library, f"standin_{name}")
            function.restype, function.argtypes = result, arguments

    # ---- calls

    def reset(self) -> None:
        """Forgets counts, log, failures to come and latencies."""
        self.runtime.standin_reset_calls()

    def count(self, name: str) -> int:
        """How often that entry point was called."""
        return int(self.runtime.standin_count(name.encode()))

    def counts(self) -> dict[str, int]:
        """Every entry point that was called, and how often."""
        return {name: int(count) for name, count in (line.split() for line in self._text("counts"))}

    def fail(self, name: str, nth: int = 1, error: int = OUT_OF_MEMORY) -> None:
        """The `nth` call of that entry point from now on fails once; 0 takes that back."""
        self.runtime.standin_fail(name.encode(), nth, error)

    def set_latency(self, name: str, nanoseconds: int) -> None:
        """Each call of that entry point takes so long."""
        self.runtime.standin_set_latency(name.encode(), nanoseconds)

    def charged_ns(self) -> int:
        """All latency so far."""
        return int(self.runtime.standin_charged_ns())

    @contextmanager
    def logged(self) -> Iterator[list[str]]:
        """The calls that change memory or order, a line each; filled when the block ends."""
        lines: list[str] = []
        self._text("take_log")
        self.runtime.standin_set_logged(1)
        try:
            yield lines
        finally:
            self.runtime.standin_set_logged(0)
            lines.extend(self._text("take_log"))

    def _text(self, name: str) -> list[str]:
        """What a control writes, by lines."""
        function = getattr(self.runtime, f"standin_{name}")
        length = function(ctypes.create_string_buffer(1), 0)
        while True:
            text = ctypes.create_string_buffer(length)
            needed = function(text, length)
            if needed <= length:
                return text.value.decode().splitlines()
            length = needed  # another thread made more calls meanwhile

    # ---- devices

    def set_device_count(self, count: int) -> None:
        """Before torch has counted them."""
        self.runtime.standin_set_device_count(count)

    def set_manages_virtual_memory(self, manages: bool) -> None:
        """Whether devices have virtual memory management, for who asks from now on."""
        self.runtime.standin_set_manages_virtual_memory(manages)

    def set_capacity(self, capacity: int, device: int = 0) -> None:
        """Bytes of a device's memory. What is in use stays even if it is more."""
        self.runtime.standin_set_capacity(device, capacity)

    def used(self, device: int = 0) -> int:
        """Bytes in use on a device."""
        return int(self.runtime.standin_used(device))

    def peak(self, device: int = 0) -> int:
        """The most of them since `reset_peak`."""
        return int(self.runtime.standin_peak(device))

    def reset_peak(self, device: int = 0) -> None:
        """Starts the peak anew from what is in use."""
        self.runtime.standin_reset_peak(device)

    def pinned(self) -> int:
        """Bytes of host memory that are pinned: allocated by CUDA, or registered with it."""
        return int(self.runtime.standin_pinned())

    def live(self) -> Live:
        """Handles, mappings, reservations and streams that exist."""
        found = (ctypes.c_size_t * 4)()
        self.runtime.standin_live(found)
        return Live(*found)

    # ---- streams

    @contextmanager
    def held(self, stream: Any) -> Iterator[None]:
        """Inside, nothing that is put into the stream happens, but by `step` or a synchronization."""
        self._checked("hold", handle_of(stream), 1)
        try:
            yield
        finally:
            self._checked("hold", handle_of(stream), 0)

    def step(self, stream: Any, operations: int = 1) -> int:
        """Runs up to that number of operations of a held stream; returns how many ran."""
        return int(self.runtime.standin_step(handle_of(stream), operations))

    def pending(self, stream: Any) -> int:
        """Operations of a stream that have not happened."""
        return int(self.runtime.standin_pending(handle_of(stream)))

    def write_later(self, stream: Any, address: int, size: int, seed: int) -> None:
        """A kernel that fills a range with a pattern when its turn comes."""
        self._checked("write_later", handle_of(stream), address, size, seed)

    def check_later(self, stream: Any, address: int, size: int, seed: int) -> None:
        """A kernel that counts a violation if, when its turn comes, the pattern is gone."""
        self._checked("check_later", handle_of(stream), address, size, seed)

    def violations(self) -> int:
        """How many checks failed so far."""
        return int(self.runtime.standin_violations())

    def _checked(self, name: str, *arguments: int) -> None:
        error = getattr(self.runtime, f"standin_{name}")(*arguments)
        if error != 0:
            raise StandinError(f"{name}: error {error}")
