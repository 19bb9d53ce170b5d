"""Pools that follow a context into tasks and threads."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch

import mempool

T = TypeVar("T")
MIB = 1 << 20


def bytes_of(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8)


async def pool_after(steps: int = 1) -> mempool.MemoryPool | None:
    for _ in range(steps):
        await asyncio.sleep(0)
    return mempool.current_pool()


def followed(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs it in a task that follows, and finds the loop as it was afterwards."""
    loop = asyncio.new_event_loop()
    try:
        with mempool.follow_context(loop) as handle:
            result = loop.run_until_complete(main())
        assert loop.get_task_factory() is None
        handle.remove()
        assert mempool.current_pool() is None
        loop.run_until_complete(loop.shutdown_default_executor())
        return result
    finally:
        loop.close()


def test_a_with_across_an_await_is_right_and_its_tasks_are_charged(enabled: None) -> None:
    pool, other = mempool.MemoryPool("p", limit="16MiB"), mempool.MemoryPool("other")

    async def innocent() -> list[object]:
        return [await pool_after(1) for _ in range(10)]

    async def main() -> None:
        stranger = asyncio.create_task(innocent())
        with mempool.use_pool(pool):
            for _ in range(3):
                await asyncio.sleep(0)
                assert mempool.current_pool() is pool
            assert await asyncio.gather(pool_after(), asyncio.create_task(pool_after(3))) == [pool, pool]
            with mempool.use_pool(other):
                late = asyncio.create_task(pool_after(5))
                assert await pool_after() is other
            assert await late is pool  # it has outlived the inner block
            with pytest.raises(mempool.OutOfMemoryError):
                await asyncio.create_task(grow(32 * MIB))
            assert await mempool.in_pool(other, asyncio.wait_for(pool_after(), 5)) is other
        assert await pool_after() is None
        assert await stranger == [None] * 10

    followed(main)


async def grow(size: int) -> torch.Tensor:
    await asyncio.sleep(0)
    return bytes_of(size)


def test_threads_that_work_for_a_task_are_charged(enabled: None) -> None:
    pool = mempool.MemoryPool("p")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with mempool.use_pool(pool):
            assert await asyncio.to_thread(mempool.current_pool) is pool
            assert await loop.run_in_executor(None, mempool.current_pool) is pool
            with ThreadPoolExecutor(1) as own:  # a thread of the user's own is charged to the device
                assert await loop.run_in_executor(own, mempool.current_pool) is None
        assert await asyncio.to_thread(mempool.current_pool) is None
        assert await mempool.in_pool(pool, asyncio.to_thread(mempool.current_pool)) is pool

    followed(main)


def test_the_default_executor_of_before_does_the_work_and_comes_back(enabled: None) -> None:
    pool = mempool.MemoryPool("p")

    async def main() -> tuple[object, str]:
        import threading

        with mempool.use_pool(pool):
            name = await asyncio.to_thread(lambda: threading.current_thread().name)
            return await asyncio.to_thread(mempool.current_pool), name

    loop = asyncio.new_event_loop()
    before = ThreadPoolExecutor(1, thread_name_prefix="mine")
    loop.set_default_executor(before)
    with mempool.follow_context(loop):
        where, name = loop.run_until_complete(main())
    assert where is pool
    assert name.startswith("mine")
    assert loop._default_executor is before  # type: ignore[attr-defined]
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_anyio_threads_and_generators_whose_steps_run_there(enabled: None) -> None:
    to_thread = pytest.importorskip("anyio.to_thread")
    before = to_thread.run_sync
    outer, inner = mempool.MemoryPool("outer"), mempool.MemoryPool("inner")

    def dependency() -> Iterator[object]:
        with mempool.use_pool(inner):
            yield mempool.current_pool()

    async def main() -> None:
        with mempool.use_pool(outer):
            assert await to_thread.run_sync(mempool.current_pool) is outer
            steps = dependency()
            assert await to_thread.run_sync(next, steps) is inner
            assert await to_thread.run_sync(mempool.current_pool) is outer  # it has not outlived its step
            assert await to_thread.run_sync(next, steps, None) is None
        assert await to_thread.run_sync(mempool.current_pool) is None

    followed(main)
    assert to_thread.run_sync is before


def test_a_task_factory_of_before_is_used_and_comes_back(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    made: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any) -> Any:
        made.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **kwargs)

    async def main() -> object:
        with mempool.use_pool(pool):
            return await asyncio.create_task(pool_after(), name="child")

    loop = asyncio.new_event_loop()
    loop.set_task_factory(factory)
    handle = mempool.follow_context(loop)
    assert loop.run_until_complete(main()) is pool
    handle.remove()
    assert loop.get_task_factory() is factory
    assert made[-1] == "pool_after"
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_errors_and_cancellation_pass_through(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    ended: list[object] = []

    async def waits() -> None:
        with mempool.use_pool(pool):
            try:
                await asyncio.sleep(10)
            finally:
                ended.append(mempool.current_pool())

    async def main() -> None:
        task = asyncio.create_task(waits())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ZeroDivisionError):
            await asyncio.create_task(fails())

    async def fails() -> None:
        with mempool.use_pool(pool):
            await asyncio.sleep(0)
            _ = 1 // 0

    followed(main)
    assert ended == [pool]


def test_without_it_a_child_is_charged_to_the_device_and_a_wrong_loop_is_refused(enabled: None) -> None:
    pool = mempool.MemoryPool("p")

    async def child() -> object:
        return await asyncio.create_task(pool_after())

    assert asyncio.run(mempool.in_pool(pool, child())) is None
    with pytest.raises(RuntimeError, match="name one"):
        mempool.follow_context()
    with pytest.raises(mempool.ConfigError, match="event loop"):
        mempool.follow_context(3)  # type: ignore[arg-type]


def test_what_comes_behind_a_block_in_the_same_step_is_outside_of_it(enabled: None) -> None:
    outer, inner = mempool.MemoryPool("outer"), mempool.MemoryPool("inner")

    async def main() -> None:
        with mempool.use_pool(outer):
            with mempool.use_pool(inner):
                await asyncio.sleep(0)
                assert mempool.current_pool() is inner
            assert mempool.current_pool() is outer
            inner.close()
            kept = bytes_of(1000)
            assert outer.used_bytes() == 1024
            await asyncio.sleep(0)
            assert mempool.current_pool() is outer
        assert mempool.current_pool() is None
        del kept

    followed(main)


def test_the_order_in_which_pools_were_entered_holds(enabled: None) -> None:
    outer, inner = mempool.MemoryPool("outer"), mempool.MemoryPool("inner")

    async def work() -> None:
        with mempool.use_pool(inner):
            for _ in range(3):
                await asyncio.sleep(0)
                assert mempool.current_pool() is inner
                assert await asyncio.create_task(pool_after()) is inner
        assert mempool.current_pool() is outer

    async def main() -> None:
        await mempool.in_pool(outer, work())
        assert mempool.current_pool() is None

    followed(main)


def test_a_pool_that_is_closed_refuses_and_lifts_no_limit(enabled: None) -> None:
    pool = mempool.MemoryPool("p", limit="2MiB")

    async def main() -> None:
        with mempool.use_pool(pool):
            pool.close()
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="'p' is closed"):
                bytes_of(100)
            with pytest.raises(RuntimeError, match="'p' is closed"):
                await asyncio.to_thread(bytes_of, 100)

    followed(main)


def test_a_loop_of_a_worker_thread_is_watched_as_any_other(enabled: None) -> None:
    pool = mempool.MemoryPool("p")

    async def careless() -> None:
        with mempool.use_pool(pool):
            await asyncio.sleep(0)

    async def both() -> list[object]:
        return await asyncio.gather(careless(), pool_after(2), return_exceptions=True)

    async def main() -> list[object]:
        return await asyncio.to_thread(lambda: asyncio.run(both()))

    outcome, seen = followed(main)
    assert isinstance(outcome, RuntimeError)
    assert seen is None


def test_nothing_is_kept_by_a_context_once_the_block_has_ended(enabled: None) -> None:
    import weakref

    gc.collect()
    before = len(mempool.list_pools("cpu"))
    background: list[asyncio.Task[object]] = []

    async def request() -> torch.Tensor:
        with mempool.use_pool(mempool.MemoryPool("request")):
            background.append(asyncio.create_task(asyncio.sleep(10)))
            await asyncio.sleep(0)
        return bytes_of(100)

    async def main() -> None:
        task = asyncio.create_task(request())
        result = weakref.ref(await task)
        del task
        await asyncio.sleep(0)
        gc.collect()
        assert result() is None
        assert len(mempool.list_pools("cpu")) == before
        background[0].cancel()

    followed(main)


def test_wrappers_that_hand_work_to_threads_and_tasks_are_charged(enabled: None) -> None:
    concurrency = pytest.importorskip("starlette.concurrency")
    pool = mempool.MemoryPool("p")

    def pieces() -> Iterator[tuple[object, torch.Tensor]]:
        for _ in range(2):
            yield mempool.current_pool(), bytes_of(1024)

    async def main() -> None:
        kept = [item async for item in mempool.in_pool(pool, concurrency.iterate_in_threadpool(pieces()))]
        assert [where for where, _ in kept] == [pool, pool]
        assert pool.used_bytes() == 2048
        assert await mempool.in_pool(pool, concurrency.run_in_threadpool(mempool.current_pool)) is pool
        assert await mempool.in_pool(pool, asyncio.wait_for(pool_after(), 5)) is pool
        task = asyncio.create_task(pool_after())  # charged where it was made
        for wrong in (asyncio.wait([task]), asyncio.wait_for(task, 5)):
            with pytest.raises(mempool.ConfigError, match="each of the tasks"):
                mempool.in_pool(pool, wrong)
        assert await task is None

    followed(main)


@pytest.mark.parametrize("follows", [True, False])
def test_a_task_that_is_cancelled_before_it_begins_warns_of_nothing(enabled: None, follows: bool) -> None:
    pool, other = mempool.MemoryPool("p"), mempool.MemoryPool("q")

    def made() -> list[Coroutine[Any, Any, object]]:
        return [
            pool_after(),
            mempool.in_pool(pool, pool_after()),
            mempool.in_pool(other, mempool.in_pool(pool, pool_after())),
            mempool.bind(pool, pool_after)(),
            mempool.to_thread(pool, int),
        ]

    async def main() -> None:
        tasks = [asyncio.ensure_future(each) for each in made()]
        assert [task.get_coro().__name__ for task in tasks[:3]] == ["pool_after"] * 3  # type: ignore[union-attr]
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 5
        for each in made():
            each.close()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if follows:
            followed(main)
        else:
            asyncio.run(main())
        gc.collect()
    assert [str(each.message) for each in caught] == []


def test_a_coroutine_that_nobody_awaits_is_warned_of_once_by_its_name(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mempool.in_pool(pool, pool_after())
        gc.collect()
    assert [str(each.message) for each in caught] == ["coroutine 'pool_after' was never awaited"]
