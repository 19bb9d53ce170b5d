"""One use_pool object in several hands: nested, of several threads and tasks, of a subclass, copied."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import pickle
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import mempool
from mempool import scopes


def followed(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    loop = asyncio.new_event_loop()
    with mempool.follow_context(loop):
        loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


async def pool_after(steps: int) -> mempool.MemoryPool | None:
    for _ in range(steps):
        await asyncio.sleep(0)
    return mempool.current_pool()


def test_one_object_for_several_generators_ends_the_stay_of_each(
    enabled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each began on one worker and goes on on another, so neither the thread nor the context says which is which."""
    monkeypatch.setattr(scopes, "_has_warned", False)
    pool = mempool.MemoryPool("p")
    scope = mempool.use_pool(pool)

    def shared() -> Iterator[None]:
        with scope:
            yield

    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second, ThreadPoolExecutor(1) as third:
        workers = (first, second)
        steps = [shared(), shared()]
        for worker, step in zip(workers, steps, strict=True):
            worker.submit(next, step).result()
        with pytest.warns(RuntimeWarning, match="ended on another"):
            third.submit(next, steps[0], None).result()
        assert [worker.submit(mempool.current_pool).result() for worker in workers] == [None, pool]
        third.submit(next, steps[1], None).result()
        assert [worker.submit(mempool.current_pool).result() for worker in workers] == [None, None]


def test_one_object_for_several_tasks_ends_the_stay_of_each(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    scope = mempool.use_pool(pool)
    order: list[str] = []

    async def careless(name: str, steps: int) -> None:
        with scope:
            for _ in range(steps):
                await asyncio.sleep(0)
        order.append(name)

    async def main() -> list[object]:
        with scope:  # and one that does not wait
            assert mempool.current_pool() is pool
        outcomes = await asyncio.gather(careless("a", 1), careless("b", 3), careless("c", 0), return_exceptions=True)
        assert mempool.current_pool() is None
        return outcomes

    outcomes = asyncio.run(main())
    assert [type(outcome) for outcome in outcomes] == [RuntimeError, RuntimeError, type(None)]
    assert order == ["c"]


class Forgetful(mempool.use_pool):
    def __init__(self) -> None:
        self.calls = 0


def test_a_use_pool_that_was_not_made_properly_says_so(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    for scope in (Forgetful(), mempool.use_pool.__new__(mempool.use_pool, pool)):
        with pytest.raises(mempool.ConfigError, match=r"has no pool.*super\(\).__init__\(pool\)"), scope:
            pass
    for scope in (Forgetful(), mempool.use_pool(pool)):
        with pytest.raises(mempool.PoolStateError, match="not entered"):
            scope.__exit__(None, None, None)
    assert mempool.current_pool() is None

    class Counting(mempool.use_pool):
        def __init__(self, pool: mempool.MemoryPool) -> None:
            super().__init__(pool)
            self.calls = 0

    with Counting(pool) as entered:
        assert mempool.current_pool() is entered is pool


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_use_pool_is_not_copied(enabled: None, copied: Callable[[object], object]) -> None:
    pool = mempool.MemoryPool("p")
    scope = mempool.use_pool(pool)
    with pytest.raises(TypeError, match=r"neither copied nor pickled.*use_pool\(pool\)"):
        copied(scope)
    with scope:
        assert mempool.current_pool() is pool


@pytest.mark.parametrize("way", ["with", "stack"])
def test_tasks_share_one_object_and_each_ends_its_own_stay(enabled: None, way: str) -> None:
    pool, outer = mempool.MemoryPool("p"), mempool.MemoryPool("outer")
    scope = mempool.use_pool(pool)
    seen: list[tuple[str, object, object]] = []

    async def work(name: str, before: int, within: int) -> None:
        for _ in range(before):
            await asyncio.sleep(0)
        with contextlib.ExitStack() as stack:
            if way == "stack":
                stack.enter_context(scope)
                inside = await pool_after(within)
            else:
                with scope:
                    inside = await pool_after(within)
        seen.append((name, inside, mempool.current_pool()))

    async def main() -> None:
        with mempool.use_pool(outer):
            await asyncio.gather(work("a", 0, 3), work("b", 1, 8), work("c", 2, 4), work("d", 9, 1))

    followed(main)
    assert seen == [(name, pool, outer) for name in "acbd"]


def test_a_task_that_left_all_pools_ends_its_own_stay(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    scope = mempool.use_pool(pool)

    async def leaves() -> object:
        with contextlib.ExitStack() as stack:
            stack.enter_context(scope)
            mempool.leave_pools()
            await asyncio.sleep(0)
        return mempool.current_pool()

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(scope)
            tasks = [asyncio.create_task(leaves()), asyncio.create_task(pool_after(8))]
            assert await tasks[0] is None
            assert mempool.current_pool() is pool
            assert await tasks[1] is pool
        assert mempool.current_pool() is None

    followed(main)
