"""What the operating system says about this process, and a thread that samples it."""

from __future__ import annotations

import os
import resource
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

import mempool

PERIOD_S = 0.005


def resident_bytes() -> int:
    """Resident set of this process; the kernel batches the counter, so it may be off by some hundred KiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak_resident_bytes() -> int:
    """Largest resident set since exec. Not ru_maxrss: that one starts at the parent's value on some kernels."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def page_faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def cpu_seconds() -> float:
    """CPU time of all threads of this process: unlike a latency, it hardly depends on who else uses the machine."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def machine_busy_seconds() -> float:
    """CPU time that all processes of the machine used, and what a hypervisor took from it."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = (
            int(field) for field in file.readline().split()[1:]
        )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


@dataclass
class Timeline:
    """Samples of one burst, index by index; allocated and reserved stay empty for torch's allocator."""

    seconds: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    allocated: list[int] = field(default_factory=list)
    reserved: list[int] = field(default_factory=list)


class Sampler:
    """Fills a Timeline while its ``with`` block runs. Both kinds of worker run it, so both pay for it."""

    def __init__(self, with_mempool: bool) -> None:
        self.timeline = Timeline()
        self._with_mempool = with_mempool
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        line = self.timeline
        while not self._stop.is_set():
            line.seconds.append(time.perf_counter() - self._start)
            line.resident.append(resident_bytes())
            if self._with_mempool:
                line.allocated.append(mempool.memory_allocated("cpu"))
                line.reserved.append(mempool.memory_reserved("cpu"))
            self._stop.wait(PERIOD_S)
