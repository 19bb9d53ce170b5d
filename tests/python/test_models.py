"""Real models give the same bits with mempool as without, on one thread."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import mempool

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.models.workloads import NAMES, digest, workload


def run(name: str, steps: int) -> list[str]:
    model = workload(name, small=True)
    state = model.build()
    return [digest(model.outputs(state, model.step(state))) for _ in range(steps)]


@pytest.mark.parametrize("name", NAMES)
def test_results_are_bit_equal(one_thread: None, name: str) -> None:
    mempool.disable()
    expected = run(name, 3)
    mempool.enable("cpu")
    allocations = mempool.memory_stats()["allocation.all.allocated"]
    assert run(name, 3) == expected
    assert mempool.memory_stats()["allocation.all.allocated"] > allocations + 10
    mempool.disable()
    assert run(name, 3) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_steady_state_asks_the_system_for_nothing(one_thread: None, enabled: None, name: str) -> None:
    model = workload(name, small=True)
    state = model.build()
    for _ in range(6):
        model.step(state)
    before = mempool.memory_stats()
    for _ in range(10):
        model.step(state)
    after = mempool.memory_stats()
    for key in ("num_device_alloc", "num_device_free", "reserved_bytes.all.current"):
        assert after[key] == before[key]
