"""Pools and coroutines: tasks that share a thread never mix."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

import mempool

MIB = 1 << 20


def bytes_of(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8)


async def grow(pool: mempool.MemoryPool, size: int, steps: int) -> list[torch.Tensor]:
    kept = []
    for step in range(steps):
        assert mempool.current_pool() is pool
        kept.append(bytes_of(size))
        await asyncio.sleep(0.001 * (step % 3))
    return kept


async def pool_after(delay: float = 0) -> mempool.MemoryPool | None:
    await asyncio.sleep(delay)
    return mempool.current_pool()


async def two_pools() -> AsyncIterator[tuple[object, torch.Tensor]]:
    for _ in range(2):
        yield mempool.current_pool(), bytes_of(1000)
        await asyncio.sleep(0)


def test_two_tasks_each_in_their_pool_never_mix(enabled: None) -> None:
    pools = [mempool.MemoryPool(f"task {i}") for i in range(3)]

    async def main() -> list[list[torch.Tensor]]:
        tasks = [mempool.in_pool(pool, grow(pool, 64 * (i + 1), 20)) for i, pool in enumerate(pools)]
        result = await asyncio.gather(*tasks)
        assert mempool.current_pool() is None
        return result

    kept = asyncio.run(main())
    assert [pool.used_bytes() for pool in pools] == [64 * (i + 1) * 20 for i in range(3)]
    assert all(pool.stats()["allocation.allocated"] == 20 for pool in pools)
    kept.clear()


def test_in_pool_carries_errors_results_and_cancellation(enabled: None) -> None:
    pool = mempool.MemoryPool("p", limit="1MiB")
    cleaned: list[object] = []

    async def fails() -> None:
        await asyncio.sleep(0)
        bytes_of(2 * MIB)

    async def waits() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            cleaned.append(mempool.current_pool())

    async def main() -> None:
        with pytest.raises(mempool.OutOfMemoryError):
            await mempool.in_pool(pool, fails())
        task = asyncio.create_task(mempool.in_pool(pool, waits()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(mempool.in_pool(pool, waits()), 0.01)

    asyncio.run(main())
    assert cleaned == [pool, pool]
    assert mempool.current_pool() is None


def test_a_pool_closed_meanwhile_is_raised_where_the_coroutine_waits(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    ended: list[object] = []

    async def work() -> None:
        try:
            while True:
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)  # cleaning up may wait, and allocates in no pool
            ended.append((mempool.current_pool(), len(bytes_of(100))))

    async def main() -> None:
        task = asyncio.create_task(mempool.in_pool(pool, work()))
        await asyncio.sleep(0)
        pool.close()
        with pytest.raises(mempool.PoolClosedError):
            await task
        with pytest.raises(mempool.PoolClosedError):
            await mempool.in_pool(pool, work())

    asyncio.run(main())
    assert ended == [(None, 100)]


def test_a_cancellation_goes_before_the_news_that_the_pool_is_closed(enabled: None) -> None:
    pool = mempool.MemoryPool("p")

    async def main() -> None:
        task = asyncio.create_task(mempool.in_pool(pool, asyncio.sleep(10)))
        await asyncio.sleep(0)
        task.cancel()
        pool.close()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main())


def test_a_plain_with_across_an_await_does_not_hide_what_ends_it(enabled: None) -> None:
    pool = mempool.MemoryPool("p")

    async def wrong() -> None:
        with mempool.use_pool(pool):
            await asyncio.sleep(10)

    async def main() -> None:
        task = asyncio.create_task(wrong())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main())
    assert mempool.current_pool() is None


def test_a_plain_with_across_an_await_is_an_error(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    seen: list[object] = []

    async def wrong() -> None:
        with mempool.use_pool(pool):
            await asyncio.sleep(0.01)

    async def other() -> None:
        await asyncio.sleep(0)
        seen.append(mempool.current_pool())

    async def main() -> None:
        task = asyncio.create_task(wrong())
        await asyncio.sleep(0)
        await other()
        with pytest.raises(RuntimeError, match="in_pool"):
            await task
        with mempool.use_pool(pool):  # without an await it is right
            seen.append(mempool.current_pool())

    asyncio.run(main())
    assert seen == [None, pool]
    assert mempool.current_pool() is None


def test_a_plain_with_inside_in_pool_is_found_too(enabled: None) -> None:
    outer, inner = mempool.MemoryPool("outer"), mempool.MemoryPool("inner")

    async def wrong() -> None:
        with mempool.use_pool(inner):
            await asyncio.sleep(0)

    async def main() -> None:
        with pytest.raises(RuntimeError, match="'inner'"):
            await mempool.in_pool(outer, wrong())

    asyncio.run(main())
    assert mempool.current_pool() is None


def test_bind_of_a_coroutine_function(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    kept = asyncio.run(mempool.bind(pool, grow)(pool, 64, 3))
    assert pool.used_bytes() == 3 * 64
    del kept


def test_in_pool_refuses_what_runs_elsewhere(enabled: None) -> None:
    pool = mempool.MemoryPool("p")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(pool_after())
        future = asyncio.gather(pool_after(), pool_after())
        for wrong in (task, future, loop.run_in_executor(None, int), pool_after, 3, None):
            with pytest.raises(mempool.ConfigError, match="in_pool wants a coroutine"):
                mempool.in_pool(pool, wrong)  # type: ignore[call-overload]
        with pytest.raises(mempool.ConfigError, match=r"mempool\.to_thread"):
            mempool.in_pool(pool, asyncio.to_thread(bytes_of, 3))
        assert await task is None
        await future
        assert await asyncio.wait_for(mempool.in_pool(pool, pool_after()), 5) is pool
        # In a pool of its own: the worker thread lets go of the result when it likes.
        other = mempool.MemoryPool("thread")
        assert len(await mempool.to_thread(other, bytes_of, 100)) == 100
        assert other.stats()["allocation.allocated"] == 1
        kept = [item async for item in mempool.in_pool(pool, two_pools())]
        assert [where for where, _ in kept] == [pool, pool]
        assert pool.used_bytes() == 2 * 1024
        assert mempool.current_pool() is None

    asyncio.run(main())
    assert pool.stats()["allocation.allocated"] == 2


def test_an_asynchronous_generator_in_a_pool_takes_what_is_sent_and_thrown(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    ended: list[object] = []

    async def echo() -> Any:
        got = None
        try:
            while True:
                try:
                    got = yield got
                except KeyError:
                    got = "caught"
        finally:
            ended.append(mempool.current_pool())

    async def main() -> list[object]:
        generator: Any = mempool.in_pool(pool, echo())
        said = [await generator.asend(None), await generator.asend(5), await generator.athrow(KeyError())]
        await generator.aclose()
        return said

    assert asyncio.run(main()) == [None, 5, "caught"]
    assert ended == [pool]


def test_in_pool_inside_of_another_stay_leaves_that_one_alone(enabled: None) -> None:
    outer, inner = mempool.MemoryPool("outer"), mempool.MemoryPool("inner")

    async def middle() -> mempool.MemoryPool | None:
        assert await mempool.in_pool(inner, pool_after()) is inner
        return mempool.current_pool()

    assert asyncio.run(mempool.in_pool(outer, middle())) is outer
    with mempool.use_pool(outer):
        assert asyncio.run(mempool.in_pool(inner, pool_after())) is inner
        assert mempool.current_pool() is outer


def test_bind_carries_what_is_thrown_into_an_asynchronous_generator(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    rolled_back: list[object] = []

    async def dependency_of_a_request() -> AsyncIterator[object]:
        try:
            yield mempool.current_pool()
        except ValueError:
            rolled_back.append(mempool.current_pool())

    async def main() -> None:
        async with contextlib.asynccontextmanager(mempool.bind(pool, dependency_of_a_request))() as where:
            assert where is pool
            assert mempool.current_pool() is None
            raise ValueError
        assert await mempool.bind(pool, lambda: pool_after())() is pool  # a function that only makes a coroutine

    asyncio.run(main())
    assert rolled_back == [pool]


async def nothing() -> AsyncIterator[None]:
    return
    yield


def test_what_only_hands_work_on_is_refused(enabled: None) -> None:
    anyio_threads = pytest.importorskip("anyio.to_thread")
    concurrency = pytest.importorskip("starlette.concurrency")
    pool = mempool.MemoryPool("p")

    async def main() -> None:
        task = asyncio.create_task(asyncio.sleep(0))
        wrong: list[tuple[Any, str]] = [
            (asyncio.wait([task]), "each of the tasks"),
            (asyncio.wait_for(task, 5), "each of the tasks"),
            (asyncio.wait_for(asyncio.to_thread(int), 5), "in_pool|to_thread"),
            (anyio_threads.run_sync(int), "bind"),
            (concurrency.run_in_threadpool(int), "bind"),
            (concurrency.iterate_in_threadpool(iter([])), "bind"),
            (concurrency.run_until_first_complete((int, {})), "bind"),
        ]
        for work, said in wrong:
            with pytest.raises(mempool.ConfigError, match=f"charge nothing.*({said})"):
                mempool.in_pool(pool, work)
        with pytest.raises(mempool.ConfigError, match="bind"):
            async for _ in mempool.bind(pool, concurrency.iterate_in_threadpool)(iter([])):
                pass
        with pytest.raises(mempool.ConfigError, match="bind"):
            await mempool.bind(pool, concurrency.run_in_threadpool)(int)
        # What only waits, or does its work where it is, is not.
        await mempool.in_pool(pool, asyncio.sleep(0))
        await mempool.in_pool(pool, asyncio.Lock().acquire())
        await task
        assert [item async for item in mempool.in_pool(pool, nothing())] == []

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    assert [str(each.message) for each in caught if "never awaited" in str(each.message)] == []


def test_a_pool_that_is_closed_before_the_first_step_leaves_no_warning(enabled: None) -> None:
    pool = mempool.MemoryPool("p")

    async def main() -> None:
        waiting = mempool.in_pool(pool, pool_after())
        pool.close()
        with pytest.raises(mempool.PoolClosedError):
            await waiting

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    assert [str(each.message) for each in caught] == []
