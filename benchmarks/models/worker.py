"""One process of the model benchmark: runs one workload on one allocator and prints one line of JSON.

    python -m benchmarks.models.worker --allocator mempool --workload gpt_train --steps 5 --warmup 4

It is started by `benchmarks.models.run`, which clears the environment and pairs the results.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from typing import Any

from benchmarks.common import Json, allocator_stats, use_allocator
from benchmarks.peers import NAMES

_KEPT_STATS = (
    "allocated_bytes.all.peak",
    "reserved_bytes.all.peak",
    "allocation.all.allocated",
    "num_device_alloc",
    "num_device_free",
)


def page_faults() -> tuple[int, int]:
    """Minor and major page faults of this process since it started."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt, usage.ru_majflt


def memory_bytes(field: str) -> int:
    """A field of /proc/self/status that is given in kB, such as VmRSS (resident) or VmHWM (its peak), in bytes."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def reset_peak_memory() -> bool:
    """Sets the peak of resident memory back to what is resident now; False where the kernel does not allow it."""
    try:
        descriptor = os.open("/proc/self/clear_refs", os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(descriptor, b"5")  # 5: reset VmHWM, see proc(5)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def floor_seconds(step: Callable[[], Any], steps: int) -> list[float]:
    """Seconds of each of `steps` steps that allocate nothing, after one that touches the buffers."""
    step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(workload: Any, warmup: int, steps: int) -> Json:
    """Builds the workload, takes `warmup` and then `steps` steps, and returns the figures of each step.

    Times are in seconds, memory in bytes. The digest covers the outputs after every step, warm-up included; taking it
    is not timed, and its faults are not counted.
    """
    from benchmarks.models.workloads import digest

    state = workload.build()
    peak_was_reset = reset_peak_memory()
    mark = memory_bytes("VmRSS")
    each: list[dict[str, float]] = []
    digests: list[str] = []
    for _ in range(warmup + steps):
        minor, major = page_faults()
        cpu, start = time.process_time(), time.perf_counter()
        result = workload.step(state)
        stop, cpu_stop = time.perf_counter(), time.process_time()
        minor_after, major_after = page_faults()
        each.append(
            {
                "seconds": stop - start,
                "cpu_seconds": cpu_stop - cpu,
                "minor_faults": minor_after - minor,
                "major_faults": major_after - major,
            }
        )
        digests.append(digest(workload.outputs(state, result)))
        del result  # else it would be live beside the next step's result
    growth = memory_bytes("VmHWM") - mark
    floor = getattr(workload, "floor", None)  # only for a workload that can be written without allocating
    return {
        "warmup": each[:warmup],
        "steps": each[warmup:],
        "digests": digests,
        "rss_mark_bytes": mark,
        "rss_peak_growth_bytes": growth,
        "rss_peak_was_reset": peak_was_reset,
        "floor_seconds": floor_seconds(floor(state), steps) if floor else None,
    }


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--allocator", choices=NAMES, required=True)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    use_allocator(options.allocator)
    from benchmarks.models.workloads import workload

    figures = measure(workload(options.workload, options.small), options.warmup, options.steps)
    stats = allocator_stats(options.allocator)
    kept = {name: stats[name] for name in _KEPT_STATS if name in stats}
    print(json.dumps({"allocator": options.allocator, **figures, "allocator_stats": kept}))


if __name__ == "__main__":
    main()
