"""Pools: what is charged to them, their limits, and their end."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import mempool

MIB = 1 << 20


def bytes_of(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8)


def test_blocks_are_charged_to_the_innermost_pool_and_its_parents(enabled: None) -> None:
    model = mempool.MemoryPool("model")
    request = mempool.MemoryPool("request", parent=model)
    other = mempool.MemoryPool("other")
    with mempool.use_pool(request) as current:
        assert current is request is mempool.current_pool()
        kept = [bytes_of(1000)]
        with mempool.use_pool(other):
            kept.append(bytes_of(2000))
        with mempool.use_pool(request):
            kept.append(bytes_of(3 * MIB))
        kept.append(bytes_of(64))
    kept.append(bytes_of(5000))
    assert request.used_bytes() == 1024 + 3 * MIB + 64
    assert model.used_bytes() == request.used_bytes()
    assert other.used_bytes() == 2048
    assert request.stats()["requested_bytes.current"] == 1000 + 3 * MIB + 64
    kept.clear()
    assert request.used_bytes() == model.used_bytes() == other.used_bytes() == 0
    assert request.peak_bytes() == 1024 + 3 * MIB + 64
    request.reset_peak()
    assert request.peak_bytes() == 0


def test_a_parents_limit_bounds_its_children_together(enabled: None) -> None:
    model = mempool.MemoryPool("model", limit="4MiB")
    children = [mempool.MemoryPool(f"request {i}", parent=model, limit="3MiB") for i in range(2)]
    with mempool.use_pool(children[0]):
        first = bytes_of(3 * MIB)
    with mempool.use_pool(children[1]):
        with pytest.raises(mempool.OutOfMemoryError) as caught:
            bytes_of(2 * MIB)
        second = bytes_of(MIB)
    info = mempool.oom_info(caught.value)
    assert info is not None
    assert info["pool"] == "model"
    assert info["allocated"] == 3 * MIB
    assert children[1].used_bytes() == MIB
    del first, second


def test_threads_do_not_inherit_a_pool_and_bind_carries_it(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    with ThreadPoolExecutor(1) as executor:
        with mempool.use_pool(pool):
            plain = executor.submit(bytes_of, 5000).result()
            assert pool.used_bytes() == 0
        bound = executor.submit(mempool.bind(pool, bytes_of), 5000).result()
        assert pool.used_bytes() == 5120
        after = executor.submit(bytes_of, 5000).result()
        assert pool.used_bytes() == 5120
    assert mempool.bind(pool, bytes_of).__name__ == "bytes_of"
    del plain, bound, after


def test_a_block_may_die_on_another_thread(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    box: list[torch.Tensor] = []

    def make() -> None:
        with mempool.use_pool(pool):
            box.append(bytes_of(5000))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert pool.used_bytes() == 5120
    box.clear()
    assert pool.used_bytes() == 0


def test_closing_refuses_new_blocks_and_keeps_the_live_ones(live_bytes: Callable[[], int]) -> None:
    pool = mempool.MemoryPool("p", limit="64MiB")
    with mempool.use_pool(pool):
        kept = torch.arange(1000)
        pool.close()
        with pytest.raises(RuntimeError, match="closed"):
            bytes_of(1)
    pool.close()
    assert pool.closed
    assert "closed" in repr(pool)
    for call in (
        lambda: mempool.use_pool(pool).__enter__(),
        lambda: mempool.MemoryPool("child", parent=pool),
        mempool.bind(pool, lambda: None),
    ):
        with pytest.raises(mempool.PoolClosedError, match="closed"):
            call()
    assert torch.equal(kept, torch.arange(1000))
    assert pool.used_bytes() == 8192
    del kept
    assert pool.used_bytes() == 0
    assert live_bytes() == 0


def test_a_pool_that_is_forgotten_goes_with_its_last_block(live_bytes: Callable[[], int]) -> None:
    parent = mempool.MemoryPool("parent")
    with mempool.use_pool(mempool.MemoryPool("child", parent=parent, isolated=True)):
        kept = bytes_of(3 * MIB)
    gc.collect()
    held = mempool.memory_reserved()
    assert parent.used_bytes() == 3 * MIB
    del kept
    assert parent.used_bytes() == live_bytes() == 0
    assert mempool.memory_reserved() == held - 4 * MIB


def test_an_isolated_pool_has_segments_of_its_own(enabled: None) -> None:
    pool = mempool.MemoryPool("own", isolated=True)
    assert pool.total_bytes() == 0
    with mempool.use_pool(pool):
        small, large = bytes_of(100), bytes_of(5 * MIB)
    assert pool.total_bytes() == 8 * MIB
    shared = mempool.MemoryPool("shared")
    with mempool.use_pool(shared):
        other = bytes_of(100)
    assert shared.total_bytes() == shared.used_bytes() == 128
    del large
    assert pool.trim() == 6 * MIB
    assert pool.total_bytes() == 2 * MIB
    del small, other


def test_a_closed_pool_holds_no_memory_once_it_is_empty(enabled: None) -> None:
    pool = mempool.MemoryPool("p", isolated=True)
    child = mempool.MemoryPool("child", parent=pool, isolated=True)
    with mempool.use_pool(pool):
        kept = bytes_of(64 * MIB)
    with mempool.use_pool(child):
        del_at_once = bytes_of(8 * MIB)
    del del_at_once
    held = mempool.memory_reserved()
    pool.close()
    assert child.total_bytes() == 0
    assert pool.total_bytes() >= 64 * MIB
    del kept
    assert pool.total_bytes() == 0
    assert mempool.memory_reserved() <= held - 72 * MIB
    assert pool.used_bytes() == 0
    assert pool.closed


def test_a_limit_below_what_is_used_is_refused(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    with mempool.use_pool(pool):
        kept = bytes_of(3 * MIB)
    with pytest.raises(mempool.ConfigError, match="in use"):
        pool.set_limit("1MiB")
    assert pool.get_limit() is None
    pool.set_limit(3 * MIB)
    with mempool.use_pool(pool), pytest.raises(mempool.OutOfMemoryError):
        bytes_of(1)
    pool.set_limit(None)
    del kept


@pytest.mark.parametrize(
    "arguments", [{"name": ""}, {"name": 3}, {"name": "a\0b"}, {"name": "two\nlines"}, {"name": "p", "parent": "model"}]
)
def test_bad_pools_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(mempool.ConfigError):
        mempool.MemoryPool(**arguments)  # type: ignore[arg-type]


def test_only_pools_are_used() -> None:
    with pytest.raises(mempool.ConfigError):
        mempool.use_pool("requests")  # type: ignore[arg-type]
    with pytest.raises(mempool.ConfigError):
        mempool.bind(None, print)  # type: ignore[arg-type]
    with pytest.raises(mempool.DeviceError):
        mempool.MemoryPool("p", device="cuda")


def test_bind_keeps_the_kind_of_a_function_and_refuses_generators(enabled: None) -> None:
    pool = mempool.MemoryPool("p")

    async def coroutine() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> AsyncIterator[object]:
        yield mempool.current_pool()

    class AsyncCallable:
        async def __call__(self) -> object:
            return mempool.current_pool()

    async def consume() -> list[object]:
        return [item async for item in mempool.bind(pool, async_generator)()]

    assert inspect.iscoroutinefunction(mempool.bind(pool, coroutine))
    assert inspect.isasyncgenfunction(mempool.bind(pool, async_generator))
    assert not inspect.iscoroutinefunction(mempool.bind(pool, bytes_of))
    with pytest.raises(mempool.ConfigError, match="generator"):
        mempool.bind(pool, generator)
    with pytest.raises(mempool.ConfigError, match="wants a function"):
        mempool.bind(pool, 3)  # type: ignore[arg-type]
    assert asyncio.run(mempool.bind(pool, AsyncCallable())()) is pool
    assert asyncio.run(consume()) == [pool]


def test_leaving_an_outer_pool_first_keeps_the_inner_one(enabled: None) -> None:
    outer, inner = mempool.MemoryPool("outer"), mempool.MemoryPool("inner")

    def generator() -> Iterator[int]:
        with mempool.use_pool(outer):
            yield 1

    iterator = generator()
    next(iterator)
    with mempool.use_pool(inner):
        iterator.close()  # type: ignore[attr-defined]
        kept = bytes_of(1000)
        assert mempool.current_pool() is inner
    assert (inner.used_bytes(), outer.used_bytes()) == (1024, 0)
    del kept


def test_a_pool_that_a_thread_is_in_lives_until_it_is_left(enabled: None) -> None:
    before = {info.name for info in mempool.list_pools("cpu")}
    with mempool.use_pool(mempool.MemoryPool("left")):
        gc.collect()
        kept = bytes_of(1000)
        assert not next(info for info in mempool.list_pools("cpu") if info.name == "left").closed
    gc.collect()
    assert next(info for info in mempool.list_pools("cpu") if info.name == "left").closed
    del kept
    assert {info.name for info in mempool.list_pools("cpu")} == before
