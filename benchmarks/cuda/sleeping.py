"""An isolated pool sleeps and wakes, with its contents and without them. Only mempool does that."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.cuda.device import GIB, MIB, Device

_BLOCKS = 16
_TURNS = 3


def sleep(device: Device, scale: float) -> dict[str, Any]:
    """Rates of giving memory up and taking it back; contents go to pinned memory of the host."""
    import mempool

    torch = device.torch
    size = device.scaled(4 * GIB, scale) // _BLOCKS
    pool = mempool.MemoryPool("weights", device="cuda", isolated=True)
    host = [torch.full((size,), index, dtype=torch.uint8) for index in range(_BLOCKS)]
    with mempool.use_pool(pool):
        kept = [each.cuda() for each in host]
    down, up, given = [], [], 0.0
    for _ in range(_TURNS):
        free = torch.cuda.mem_get_info()[0]
        down.append(device.measured(pool.sleep).seconds)
        given = (torch.cuda.mem_get_info()[0] - free) / MIB
        up.append(device.measured(pool.wake).seconds)
    wrong = sum(not torch.equal(each.cpu(), there) for each, there in zip(kept, host, strict=True))
    dropping = device.measured(lambda: pool.sleep(keep=False)).seconds
    waking = device.measured(pool.wake).seconds
    total = size * _BLOCKS
    return {
        "pool_mib": total / MIB,
        "given_back_mib": given,
        "first_sleep_gb_per_s": total / down[0] / 1e9,
        "sleep_gb_per_s": total / statistics.median(down[1:]) / 1e9,
        "wake_gb_per_s": total / statistics.median(up) / 1e9,
        "sleep_dropping_ms": dropping * 1e3,
        "wake_dropping_ms": waking * 1e3,
        "wrong_blocks": wrong,
    }
