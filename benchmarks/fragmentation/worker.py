"""One process of the fragmentation benchmark: plays a workload with torch tensors and prints one line of JSON.

    python -m benchmarks.fragmentation.worker --allocator mempool --workload serving_mix

Every page of a block is written once when the block is made, as a model would: memory that is never touched costs
nothing, and would make every allocator look lean.
"""

from __future__ import annotations

import argparse
import json
import time

from benchmarks.common import Json, allocator_stats, use_allocator
from benchmarks.fragmentation.workloads import WAITS, WORKLOADS
from benchmarks.models.worker import memory_bytes, page_faults, reset_peak_memory
from benchmarks.peers import NAMES

PAGE = 4096


def play(name: str, idle_seconds: float) -> Json:
    """Plays a workload. Figures are bytes; `rss_growth` is the growth since before the first event."""
    import torch

    events = list(WORKLOADS[name]())
    blocks: dict[int, torch.Tensor] = {}
    sizes: dict[int, int] = {}
    torch.ones(1000).sum()  # torch's one-time allocations come before the measurement begins
    peak_was_reset = reset_peak_memory()
    mark = memory_bytes("VmRSS")
    faults_before = sum(page_faults())
    live = peak_live = 0
    start = time.perf_counter()
    for op, block, size in events:
        if op == "free":
            del blocks[block]
            live -= sizes.pop(block)
            continue
        tensor = torch.empty(size, dtype=torch.uint8)
        tensor.numpy()[::PAGE] = 1
        blocks[block] = tensor
        sizes[block] = size
        del tensor  # else the variable would keep the tensor alive beyond its free
        live += size
        peak_live = max(peak_live, live)
    seconds = time.perf_counter() - start
    made = sum(page_faults()) - faults_before
    peak = memory_bytes("VmHWM") - mark
    if name in WAITS:
        time.sleep(idle_seconds)
    return {
        "events": len(events),
        "seconds": seconds,
        "faults": made,
        "peak_live_bytes": peak_live,
        "peak_rss_growth_bytes": peak,
        "peak_was_reset": peak_was_reset,
        "end_live_bytes": live,
        "end_rss_growth_bytes": memory_bytes("VmRSS") - mark,
    }


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--allocator", choices=NAMES, required=True)
    parser.add_argument("--workload", choices=tuple(WORKLOADS), required=True)
    parser.add_argument("--idle-seconds", type=float, default=10.1)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    use_allocator(options.allocator)
    figures = play(options.workload, options.idle_seconds)
    stats = allocator_stats(options.allocator)
    kept = {key: stats[key] for key in ("num_moves", "moved_bytes", "reserved_bytes.all.peak") if key in stats}
    print(json.dumps({"allocator": options.allocator, **figures, "allocator_stats": kept}))


if __name__ == "__main__":
    main()
