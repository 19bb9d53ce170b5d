"""Statistics under the names and keys of torch.cuda.memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch

import mempool

FIGURES = (
    "allocation",
    "segment",
    "active",
    "inactive_split",
    "allocated_bytes",
    "reserved_bytes",
    "active_bytes",
    "inactive_split_bytes",
    "requested_bytes",
)
POOLS = ("all", "small_pool", "large_pool")
METRICS = ("current", "peak", "allocated", "freed")
SCALARS = ("num_alloc_retries", "num_ooms", "num_sync_all_streams", "num_device_alloc", "num_device_free")


def test_the_keys_are_those_of_torch(enabled: None) -> None:
    stats = mempool.memory_stats("cpu")
    expected = {f"{f}.{p}.{m}" for f, p, m in product(FIGURES, POOLS, METRICS)}
    # The documented scalars of torch.cuda.memory_stats.
    assert expected | set(SCALARS) <= stats.keys()
    for scalar in (*SCALARS, "max_split_size", "oversize_allocations.current", "oversize_segments.peak"):
        assert scalar in stats
    assert all(isinstance(value, int) for value in stats.values())
    assert list(stats) == sorted(stats)


def test_sums_are_right(enabled: None) -> None:
    mempool.reset_peak_memory_stats()
    mempool.reset_accumulated_memory_stats()
    before = mempool.memory_stats()
    small = torch.empty(1000, dtype=torch.uint8)  # 1024 bytes
    large = torch.empty(3 << 20, dtype=torch.uint8)
    del large
    after = mempool.memory_stats()

    def change(key: str) -> int:
        return after[key] - before[key]

    assert change("allocated_bytes.all.current") == 1024
    assert change("allocated_bytes.all.peak") == 1024 + (3 << 20)
    assert change("allocated_bytes.all.allocated") == 1024 + (3 << 20)
    assert change("allocated_bytes.all.freed") == 3 << 20
    assert change("allocated_bytes.small_pool.current") == 1024
    assert change("allocated_bytes.large_pool.current") == 0
    assert change("requested_bytes.all.current") == 1000
    assert change("allocation.all.allocated") == 2
    assert change("allocation.large_pool.freed") == 1
    assert change("active_bytes.all.current") == 1024
    del small
    final = mempool.memory_stats()
    assert final["allocated_bytes.all.current"] == before["allocated_bytes.all.current"]
    for figure, pool in product(FIGURES[:1] + FIGURES[4:5] + FIGURES[8:], POOLS):
        key = f"{figure}.{pool}"
        base = before[f"{key}.current"] - before[f"{key}.allocated"] + before[f"{key}.freed"]
        assert final[f"{key}.current"] == base + final[f"{key}.allocated"] - final[f"{key}.freed"]


def test_reserved_covers_allocated(enabled: None) -> None:
    kept = [torch.ones(n) for n in (10, 10_000, 100_000, 1_000_000)]
    assert mempool.memory_allocated() <= mempool.memory_reserved() <= mempool.max_memory_reserved()
    assert mempool.memory_allocated() <= mempool.max_memory_allocated()
    assert len(mempool.memory_snapshot()["segments"]) == mempool.memory_stats()["segment.all.current"]
    del kept


def test_peaks_are_reset(enabled: None) -> None:
    x = torch.ones(1 << 22)
    del x
    mempool.reset_peak_memory_stats()
    assert mempool.max_memory_allocated() == mempool.memory_allocated()


def test_the_summary_names_the_figures(enabled: None) -> None:
    kept = torch.ones(1 << 20)
    text = mempool.memory_summary()
    assert "Allocated memory" in text
    assert "large_pool" in text
    assert "out-of-memory errors" in text
    assert "large_pool" not in mempool.memory_summary(abbreviated=True)
    del kept


def test_the_summary_is_plain_text_wherever_it_is_made(enabled: None, python: Callable[..., Any]) -> None:
    # A notebook, as rich sees it, takes what is printed to a console of its own.
    code = (
        "import rich.console, torch, mempool\n"
        "rich.console._is_jupyter = lambda: True\n"
        "mempool.enable('cpu')\n"
        "text = mempool.memory_summary()\n"
        "assert 'Allocated memory' in text, text\n"
        "assert chr(27) not in text, text\n"
        "report = str(mempool.compress.report(torch.nn.Linear(3, 4)))\n"
        "assert '4 x 3' in report, report\n"
        "assert chr(27) not in report, report\n"
        "print('all')\n"
    )
    for environment in ({}, {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor"}, {"TERM": "dumb"}):
        done = python(code, **environment)
        assert done.stdout == "all\n", done.stderr
