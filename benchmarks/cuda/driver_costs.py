"""What each call of CUDA's driver costs on this device, beside what the stand-in and the allocator's design assume.

    python -m benchmarks.cuda.driver_costs --device real|stand-in [--rounds 15] [--out benchmarks/results] [--json]

Each round makes and gives back a number of handles of each size; a cell is the median over the rounds, with the
smallest and the largest. On the stand-in the figures are those of its own code: they say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import DEFAULT_OUT, Json, Spread, environment_facts, spread_json, table_console, write_report
from benchmarks.cuda import DEVICES
from benchmarks.cuda.device import GIB, MIB, Device, DeviceMissing, open_device

SIZES = (2 * MIB, 16 * MIB, 64 * MIB, 128 * MIB, GIB)
MOST_HANDLES = 64  # of one size in a round
# A published figure, which sizes of handles were chosen with: mapping 2 MiB and making them accessible. Microseconds.
ASSUMED_US = {("cuMemMap", 2 * MIB): "80 with cuMemSetAccess", ("cuMemSetAccess", 2 * MIB): "80 with cuMemMap"}
STAND_IN_US = 0.0  # what the stand-in charges for a call, unless a test sets a latency


class DriverError(RuntimeError):
    """A call of the driver failed."""


class _Property(ctypes.Structure):
    """CUmemAllocationProp of pinned memory on a device, without handles to share."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location_type", ctypes.c_int),
        ("location_id", ctypes.c_int),
        ("metadata", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class _Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location_type", ctypes.c_int), ("location_id", ctypes.c_int), ("flags", ctypes.c_int))


_PINNED, _ON_DEVICE, _READ_WRITE = 1, 1, 3


@dataclass
class Clock:
    """Microseconds of each kind of call, a mean for each round."""

    times: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def each(self, name: str, size: int, calls: Sequence[Callable[[], int]]) -> None:
        """Makes all of these calls. Raises DriverError."""
        begun = time.perf_counter()
        errors = [call() for call in calls]
        took = (time.perf_counter() - begun) / len(calls) * 1e6
        if any(errors):
            raise DriverError(f"{name} of {size} bytes: error {next(error for error in errors if error)}")
        self.times.setdefault((name, size), []).append(took)


class Driver:
    """The driver's and the runtime's calls for memory, on the current context of cuda:0."""

    def __init__(self, device: Device) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._runtime = ctypes.CDLL(f"libcudart.so.{str(device.torch.version.cuda).split('.')[0]}")
        self._property = _Property(_PINNED, 0, _ON_DEVICE, 0, None)
        self._access = _Access(_ON_DEVICE, 0, _READ_WRITE)

    def _call(self, name: str, *arguments: Any) -> Callable[[], int]:
        function = getattr(self._driver, name, None) or getattr(self._runtime, name)
        return lambda: int(function(*arguments))

    def measure_virtual(self, clock: Clock, size: int, count: int) -> None:
        """Handles of one size, mapped one behind the other into a range of their own."""
        base = ctypes.c_uint64()
        number, length = ctypes.c_uint64, ctypes.c_size_t
        made = [ctypes.c_uint64() for _ in range(count)]
        reserve = self._call(
            "cuMemAddressReserve", ctypes.byref(base), length(size * count), length(0), number(0), number(0)
        )
        clock.each("cuMemAddressReserve", size * count, [reserve])
        properties, access = ctypes.byref(self._property), ctypes.byref(self._access)
        at = [number(base.value + index * size) for index in range(count)]
        create = [self._call("cuMemCreate", ctypes.byref(each), length(size), properties, number(0)) for each in made]
        clock.each("cuMemCreate", size, create)
        spots = list(zip(at, made, strict=True))
        clock.each(
            "cuMemMap", size, [self._call("cuMemMap", a, length(size), length(0), h, number(0)) for a, h in spots]
        )
        clock.each(
            "cuMemSetAccess", size, [self._call("cuMemSetAccess", a, length(size), access, length(1)) for a in at]
        )
        clock.each("cuMemUnmap", size, [self._call("cuMemUnmap", a, length(size)) for a in at])
        clock.each("cuMemRelease", size, [self._call("cuMemRelease", handle) for handle in made])
        clock.each("cuMemAddressFree", size * count, [self._call("cuMemAddressFree", at[0], length(size * count))])

    def measure_plain(self, clock: Clock, size: int, count: int) -> None:
        """cudaMalloc and cudaFree, which the native allocator grows and shrinks by."""
        made = [ctypes.c_void_p() for _ in range(count)]
        take = [self._call("cudaMalloc", ctypes.byref(each), ctypes.c_size_t(size)) for each in made]
        clock.each("cudaMalloc", size, take)
        clock.each("cudaFree", size, [self._call("cudaFree", each) for each in made])


def measure(device: Device, rounds: int) -> list[Json]:
    """A row for each call and size."""
    clock, driver = Clock(), Driver(device)
    room = device.torch.cuda.mem_get_info()[0] // 4
    sizes = [size for size in SIZES if size <= room]
    for _ in range(rounds):
        for size in sizes:  # in turn, so that a slow moment hits all of them
            count = max(1, min(MOST_HANDLES, room // size))
            device.torch.cuda.synchronize()
            driver.measure_virtual(clock, size, count)
            driver.measure_plain(clock, size, count)
    return [
        {
            "call": name,
            "bytes": size,
            "us": spread_json(times),
            "stand_in_us": STAND_IN_US,
            "assumed_us": ASSUMED_US.get((name, size)),
        }
        for (name, size), times in sorted(clock.times.items())
    ]


def print_rows(rows: Sequence[Json], name: str, console: Console) -> None:
    table = Table(title=f"a call of the driver on {name}, microseconds", title_justify="left")
    for column in ("call", "MiB", "measured", "the stand-in charges", "the design assumes"):
        table.add_column(column, justify="left" if column == "call" else "right")
    for row in rows:
        cells = (Spread(**row["us"]).text(2), f"{row['stand_in_us']:g}", row["assumed_us"] or "-")
        table.add_row(row["call"], f"{row['bytes'] / MIB:g}", *cells)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", required=True, choices=DEVICES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--json", action="store_true", help="print the report, and no table")
    options = parser.parse_args(arguments)
    try:
        device = open_device(options.device, "native")
        rows = measure(device, options.rounds)
    except (DeviceMissing, DriverError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report = {"facts": environment_facts(1), "device": device.facts(), "rounds": options.rounds, "rows": rows}
    path = write_report(options.out, "cuda_driver_costs", report)
    if options.json:
        print(json.dumps(report, indent=1))
        return 0
    console = table_console()
    print_rows(rows, report["device"]["name"], console)
    console.print(f"written: {path}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
