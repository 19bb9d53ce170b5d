"""Memory that is held ahead of demand: enable(reserve=), mempool.reserve, pool.reserve, and the options."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Callable, Iterator

import pytest
import torch

import mempool
from mempool._device_cpu import cpu_options

Python = Callable[..., "subprocess.CompletedProcess[str]"]
MIB = 1 << 20


@pytest.fixture
def reserved(enabled: None) -> Iterator[None]:
    mempool.trim("cpu")
    mempool.reserve("256MiB", "cpu")
    yield
    mempool.reserve(0, "cpu")
    mempool.trim("cpu")


def test_requests_are_served_from_it(reserved: None) -> None:
    assert mempool.memory_reserved("cpu") >= 256 * MIB
    before = mempool.memory_stats("cpu")["num_device_alloc"]
    block = torch.empty(100 * MIB, dtype=torch.uint8)
    assert mempool.memory_stats("cpu")["num_device_alloc"] == before
    del block
    mempool.trim("cpu")
    assert mempool.memory_reserved("cpu") >= 256 * MIB
    mempool.reserve(0, "cpu")
    mempool.trim("cpu")
    assert mempool.memory_reserved("cpu") < 256 * MIB


def test_the_system_backs_it_at_once(python: Python) -> None:
    done = python("""
import mempool, torch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
mempool.enable("cpu")
before = resident()
mempool.reserve("200MiB", "cpu")
after = resident()
block = torch.zeros(150 << 20, dtype=torch.uint8)
print(after - before > 190 << 20, resident() - after < 20 << 20, mempool.max_memory_allocated("cpu") < 160 << 20)
""")
    assert done.stdout == "True True True\n", done.stderr


def test_a_pool_keeps_its_own(enabled: None) -> None:
    pool = mempool.MemoryPool("model", isolated=True)
    pool.reserve("64MiB")
    assert (pool.reserved_bytes, pool.total_bytes()) == (64 * MIB, 64 * MIB)
    with mempool.use_pool(pool):
        block = torch.empty(50 * MIB, dtype=torch.uint8)
    assert pool.total_bytes() == 64 * MIB
    del block
    pool.trim()
    assert pool.total_bytes() == 64 * MIB
    pool.reserve(0)
    pool.trim()
    assert pool.total_bytes() == 0
    with pytest.raises(mempool.ConfigError, match="shares its memory with others: reserve memory for the device"):
        mempool.MemoryPool("shared").reserve("1MiB")
    pool.close()
    with pytest.raises(mempool.PoolClosedError, match="no memory can be reserved for it"):
        pool.reserve("1MiB")


def test_a_reservation_ends_with_its_pool_though_a_block_lives_on(enabled: None) -> None:
    parent = mempool.MemoryPool("parent", device="cpu")
    dropped, child = (mempool.MemoryPool(name, parent=parent, isolated=True) for name in ("dropped", "child"))
    for pool in (dropped, child):
        pool.reserve("64MiB")
    with mempool.use_pool(dropped):
        block = torch.empty(100)
    mempool.trim("cpu")
    held = mempool.memory_reserved("cpu")
    del dropped
    gc.collect()
    mempool.trim("cpu")
    assert mempool.memory_reserved("cpu") <= held - 60 * MIB
    assert block.numel() == 100
    parent.close()
    with pytest.raises(mempool.PoolClosedError):
        child.reserve("128MiB")


def test_what_cannot_be_had_is_refused(reserved: None) -> None:
    mempool.set_limit("300MiB", "cpu")
    with pytest.raises(mempool.OutOfMemoryError) as caught:
        mempool.reserve("1GiB", "cpu")
    info = mempool.oom_info(caught.value)
    assert info is not None
    assert (info["reason"], info["requested"], info["limit"]) == ("device_limit", 1 << 30, 300 * MIB)
    for wrong in (-1, "lots", 1.5, True, None):
        with pytest.raises(mempool.ConfigError):
            mempool.reserve(wrong, "cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "conf"), [("mempool.enable('cpu', reserve='96MiB')", ""), ("mempool.enable('cpu')", "reserve:96MiB")]
)
def test_enable_reserves(python: Python, call: str, conf: str) -> None:
    program = f"import mempool; before = mempool.memory_reserved('cpu'); {call}; print(mempool.memory_reserved('cpu'))"
    done = python(program, MEMPOOL_CONF=conf)
    assert done.stdout == f"{96 * MIB}\n", done.stderr


def test_an_enable_that_cannot_reserve_enables_nothing(python: Python) -> None:
    done = python("""
import mempool
try:
    mempool.enable("cpu", limit="50MiB", reserve="96MiB")
except mempool.OutOfMemoryError as error:
    print(mempool.is_enabled("cpu"), mempool.get_limit("cpu"), mempool.memory_reserved("cpu"))
    print(mempool.oom_info(error)["reason"])
""")
    assert done.stdout == "False None 0\ndevice_limit\n", done.stderr


@pytest.mark.parametrize(("growth", "value"), [("as_needed", "as_needed"), ("double", "double"), ("64MiB", 64 * MIB)])
def test_the_step_of_growth_is_an_option(monkeypatch: pytest.MonkeyPatch, growth: str, value: object) -> None:
    monkeypatch.setenv("MEMPOOL_CONF", f"growth:{growth}")
    assert {row[0]: row[4] for row in cpu_options()}["growth"] == value


def test_a_step_of_growth_saves_calls(python: Python) -> None:
    program = """
import torch, mempool
mempool.enable("cpu")
blocks = [torch.empty(4 << 20, dtype=torch.uint8) for _ in range(32)]
print(mempool.memory_stats("cpu")["num_device_alloc"])
"""
    calls = [
        int(python(program, MEMPOOL_CONF=f"growth:{growth}").stdout) for growth in ("as_needed", "64MiB", "double")
    ]
    assert calls[0] >= 32
    assert max(calls[1:]) <= 8
