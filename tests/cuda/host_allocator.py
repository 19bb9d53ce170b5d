"""torch's host allocator by its C++ interface, through host_calls.cpp."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Block:
    """What ``allocate`` gives: 0 stands for a null pointer."""

    address: int
    context: int


class HostAllocator:
    """Whichever host allocator torch has for CUDA at the moment of each call."""

    def __init__(self, library: Path) -> None:
        self._calls = ctypes.CDLL(str(library))
        address, number = ctypes.c_void_p, ctypes.c_int
        self._calls.host_allocate.restype = address
        self._calls.host_allocate.argtypes = [ctypes.c_size_t, ctypes.POINTER(address)]
        self._calls.host_free.argtypes = [address]
        self._calls.host_record.argtypes = [address, address, ctypes.c_int64, number]

    def allocate(self, size: int) -> Block:
        context = ctypes.c_void_p()
        address = self._calls.host_allocate(size, ctypes.byref(context))
        return Block(address or 0, context.value or 0)

    def free(self, block: Block) -> None:
        self._calls.host_free(block.address)

    def record(self, address: int, context: int, stream: torch.cuda.Stream) -> bool:
        return bool(self._calls.host_record(address, context, stream.stream_id, stream.device_index))

    def empty_cache(self) -> None:
        self._calls.host_empty_cache()
