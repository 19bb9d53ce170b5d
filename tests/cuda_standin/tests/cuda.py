"""The calls of the runtime and the driver that the tests here make, through ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

import control

GRANULE = 2 << 20
INVALID_HANDLE = 400
NOT_READY = 600
UNSUPPORTED_IN_CAPTURE = 900
INVALIDATED = 901
UNJOINED = 904
ISOLATION = 905
CAPTURED_EVENT = 907
GLOBAL, RELAXED = 0, 2
DISABLE_TIMING = 2


class Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class Properties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", Location),
        ("windows", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", Location), ("flags", ctypes.c_int))


class Cuda:
    """Calls by name; each returns its error, and those that make something also what they made."""

    def __init__(self, standin: control.Standin) -> None:
        """Of a loaded stand-in."""
        self.library = standin.runtime

    def call(self, name: str, *arguments: Any) -> int:
        """The error of a call. Python integers are passed as 64 bits."""
        converted = [ctypes.c_uint64(each) if isinstance(each, int) else each for each in arguments]
        return int(getattr(self.library, name)(*converted))

    def make(self, name: str, *arguments: Any) -> int:
        """What a call that must succeed writes to its first argument."""
        out = ctypes.c_uint64()
        assert self.call(name, ctypes.byref(out), *arguments) == 0, name
        return out.value

    def create(self, size: int, device: int = 0, shareable: bool = False) -> tuple[int, int]:
        """(error, handle) of cuMemCreate."""
        properties = Properties(type=1, handle_types=int(shareable), location=Location(1, device))
        handle = ctypes.c_uint64()
        return self.call("cuMemCreate", ctypes.byref(handle), size, ctypes.byref(properties), 0), handle.value

    def reserve(self, size: int) -> int:
        """A reserved range."""
        return self.make("cuMemAddressReserve", size, 0, 0, 0)

    def map(self, address: int, size: int, handle: int) -> int:
        """Maps and makes accessible; the error of the first call that has one."""
        access = Access(Location(1, 0), 3)
        return self.call("cuMemMap", address, size, 0, handle, 0) or self.call(
            "cuMemSetAccess", address, size, ctypes.byref(access), 1
        )

    def stream(self) -> int:
        """A stream that waits for no other."""
        return self.make("cudaStreamCreateWithFlags", 1)

    def stream_handles(self, count: int) -> set[int]:
        """The handles of new streams, which are destroyed again."""
        made = {self.stream() for _ in range(count)}
        for each in made:
            assert self.call("cudaStreamDestroy", each) == 0
        return made

    def event(self) -> int:
        """An event without a time."""
        return self.make("cudaEventCreateWithFlags", DISABLE_TIMING)


def write(address: int, data: bytes) -> None:
    """Puts bytes at an address of the host or a device."""
    ctypes.memmove(address, data, len(data))


def read(address: int, size: int) -> bytes:
    """The bytes at an address."""
    return ctypes.string_at(address, size)
