"""Pools that are entered and left in the wrong place: on other threads, across an await, under an interrupt."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import pickle
import subprocess
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import mempool
from mempool import scopes

MIB = 1 << 20


def bytes_of(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8)


@pytest.fixture
def may_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scopes, "_has_warned", False)


def dependency(pool: mempool.MemoryPool) -> Iterator[None]:
    """As web frameworks have it: begins on one worker and ends on another."""
    with mempool.use_pool(pool):
        yield
    pool.close()


def test_a_block_that_ends_on_another_thread_frees_the_first(enabled: None, may_warn: None) -> None:
    pool = mempool.MemoryPool("request", limit="1MiB")
    outer = mempool.MemoryPool("worker")
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        steps = dependency(pool)
        first.submit(next, steps).result()
        assert first.submit(mempool.current_pool).result() is pool
        with pytest.warns(RuntimeWarning, match="in_pool"):
            second.submit(next, steps, None).result()
        assert pool.closed
        assert first.submit(mempool.current_pool).result() is None
        kept = first.submit(bytes_of, 5 * MIB).result()  # it would be refused by a pool that is closed
        assert pool.used_bytes() == 0
        # Said once; a stay below or above it is left alone.
        again = dependency(mempool.MemoryPool("again"))

        def nested() -> mempool.MemoryPool | None:
            with mempool.use_pool(outer):
                next(again)
                second.submit(next, again, None).result()
                return mempool.current_pool()

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert first.submit(nested).result() is outer
    del kept


def test_many_threads_leave_each_others_pools(enabled: None, may_warn: None) -> None:
    start = mempool.memory_allocated("cpu")
    stays: list[Iterator[None]] = []
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for round in range(60):
                pool = mempool.MemoryPool(f"{seed}.{round}")
                steps = dependency(pool)
                next(steps)
                kept = bytes_of(1000 + seed)
                with lock:
                    stays.append(steps)
                    other = stays.pop(0) if len(stays) > 3 else None
                if other is not None:
                    next(other, None)
                del kept
                with contextlib.suppress(RuntimeError):  # another thread may have closed our own pool
                    bytes_of(3000)
            mempool.leave_pools()
            bytes_of(100)
        except BaseException as error:
            failures.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for steps in stays:
            next(steps, None)
    assert failures == []
    gc.collect()
    assert mempool.memory_allocated("cpu") == start


def test_a_stay_ends_with_its_thread_and_its_block_later(enabled: None, may_warn: None) -> None:
    pool = mempool.MemoryPool("p")
    steps = dependency(pool)
    thread = threading.Thread(target=next, args=(steps,))
    thread.start()
    thread.join()
    assert next(steps, None) is None
    assert mempool.current_pool() is None


def test_leave_pools_takes_this_thread_out_of_all(enabled: None) -> None:
    pools = [mempool.MemoryPool(name) for name in "ab"]
    with mempool.use_pool(pools[0]), mempool.use_pool(pools[1]):
        assert mempool.leave_pools() == 2
        assert mempool.current_pool() is None
        kept = bytes_of(1000)
        with mempool.use_pool(pools[1]):
            assert mempool.current_pool() is pools[1]
        assert mempool.leave_pools() == 0
    assert [pool.used_bytes() for pool in pools] == [0, 0]
    del kept


INTERRUPTED = """
import _thread, random, signal, sys, threading, time, types, mempool
from mempool import _core, scopes
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
mempool.enable("cpu")
pool = mempool.MemoryPool("p")

@types.coroutine
def pause():
    yield

async def work():
    while True:
        await pause()

def enter_and_leave():
    while True:
        with mempool.use_pool(pool):
            pass

def drive(coroutine):
    while True:
        coroutine.send(None)

def nest(scope):
    while True:
        with scope, scope:
            pass

def prepare():
    if sys.argv[1] == "use_pool":
        return enter_and_leave
    if sys.argv[1] == "one use_pool twice":
        return lambda: nest(scope)
    coroutine = mempool.in_pool(pool, work())
    coroutine.send(None)
    return lambda: drive(coroutine)

scope = mempool.use_pool(pool)
wanted, is_over = threading.Event(), False

def strike():
    while True:
        wanted.wait()
        wanted.clear()
        if is_over:
            return
        time.sleep(random.random() * 3e-4)
        _thread.interrupt_main()  # one for each time that it is wanted

striker = threading.Thread(target=strike)
striker.start()
left = 0
for attempt in range(1000):
    run = prepare()
    try:
        wanted.set()
        run()
    except KeyboardInterrupt:  # while it is handled it keeps every frame, and so nothing that they hold ends on its own
        left += _core.following() is not None
        left += any(place.entry is not None for place in scopes.context.get())
        left += mempool.leave_pools()
is_over = True
wanted.set()
striker.join()
print("left in the pool:", left, mempool.current_pool())
"""


@pytest.mark.parametrize("what", ["use_pool", "one use_pool twice", "in_pool"])
def test_no_interrupt_leaves_a_thread_in_a_pool(
    python: Callable[..., subprocess.CompletedProcess[str]], what: str
) -> None:
    ended = python(INTERRUPTED, what)
    assert (ended.stdout, ended.stderr) == ("left in the pool: 0 None\n", "")


def test_what_needs_mempool_under_the_tensors_says_so(enabled: None) -> None:
    pool, own = mempool.MemoryPool("p", limit="1MiB"), mempool.MemoryPool("own", isolated=True)
    mempool.disable()
    try:
        waiting = asyncio.sleep(0)
        calls: list[Callable[[], object]] = [
            lambda: mempool.use_pool(pool).__enter__(),
            lambda: mempool.in_pool(pool, waiting),
            lambda: mempool.bind(pool, bytes_of),
            lambda: mempool.adopt(torch.zeros(3), pool),
            own.sleep,
        ]
        for call in calls:
            with pytest.raises(mempool.NotEnabledError, match=r'mempool\.enable\("cpu"\)'):
                call()
        assert isinstance(mempool.NotEnabledError("x"), mempool.DeviceError)
        assert mempool.current_pool() is None
        assert not own.asleep
        waiting.close()
        pool.set_limit("2MiB")
        mempool.MemoryPool("another", limit="10%")
    finally:
        mempool.enable("cpu")


def test_a_plain_with_across_an_await_hurts_no_other_task(enabled: None) -> None:
    pools = [mempool.MemoryPool(str(i)) for i in range(8)]
    seen: list[object] = []

    async def careless(pool: mempool.MemoryPool) -> None:
        with mempool.use_pool(pool):
            assert mempool.current_pool() is pool
            await asyncio.sleep(0)
            seen.append(mempool.current_pool())

    async def main() -> list[object]:
        return await asyncio.gather(*map(careless, pools), return_exceptions=True)

    outcomes = asyncio.run(main())
    assert all(isinstance(outcome, RuntimeError) and "in_pool" in str(outcome) for outcome in outcomes)
    assert seen == [None] * 8


def test_a_pool_is_itself_when_copied_and_is_not_sent_elsewhere(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    module = torch.nn.Linear(2, 2)
    module.pool = pool
    assert copy.copy(pool) is pool
    assert copy.deepcopy(module).pool is pool
    with pytest.raises(TypeError, match="account of this process"):
        pickle.dumps(module)


def test_no_attribute_is_set_by_mistake(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    pool.limit = "1MiB"  # type: ignore[assignment]
    pool.soft_limit = 1024
    assert (pool.get_limit(), pool.get_limit(soft=True)) == (MIB, 1024)
    assert (pool.limit, pool.soft_limit) == (MIB, 1024)
    pool.limit = None
    assert pool.get_limit() is None
    handle = mempool.on_pressure(lambda name, needed: None)
    handle.remove()
    for thing, name in ((pool, "limits"), (pool, "name"), (handle, "callback"), (mempool.use_pool(pool), "pool")):
        with pytest.raises(AttributeError):
            setattr(thing, name, None)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mempool.on_pressure(None), "wants a function"),  # type: ignore[arg-type]
        (lambda: mempool.MemoryPool("p", isolated="yes"), "True or False"),  # type: ignore[arg-type]
        (lambda: mempool.MemoryPool("p").sleep(keep="all"), "True or False"),  # type: ignore[arg-type]
        (lambda: mempool.MemoryPool("p").set_limit(3.5), "whole bytes"),  # type: ignore[arg-type]
        (lambda: mempool.trim("cpu", -1), "not -1.$"),
        (lambda: mempool.trim("cpu", "-1MiB"), "negative"),
        (lambda: mempool.memory_allocated(True), "unknown device|whole"),
    ],
)
def test_wrong_arguments_are_named(enabled: None, call: Callable[[], object], said: str) -> None:
    with pytest.raises((mempool.ConfigError, mempool.DeviceError), match=said) as caught:
        call()
    assert "arg0" not in str(caught.value)


def test_numbers_and_short_units_as_elsewhere(enabled: None) -> None:
    pool = mempool.MemoryPool("p", limit="1Gi")
    assert pool.get_limit() == 1 << 30
    pool.set_limit("512Mi")
    assert pool.get_limit() == 512 * MIB
    if torch.version.cuda is None:  # a number is a CUDA device, as in torch.cuda
        with pytest.raises(mempool.DeviceError, match="has no CUDA"):
            mempool.memory_allocated(0)


def test_the_pools_that_exist_are_listed_with_their_figures(enabled: None) -> None:
    before = {info.name for info in mempool.list_pools("cpu")}
    model = mempool.MemoryPool("a model", limit="64MiB")
    request = mempool.MemoryPool("a request", parent=model, soft_limit="1MiB")
    forgotten = mempool.MemoryPool("forgotten", isolated=True)
    with mempool.use_pool(request):
        kept = [bytes_of(1000), bytes_of(5000)]
    with mempool.use_pool(forgotten):
        kept.append(bytes_of(64))
    del forgotten, kept[1]
    gc.collect()
    listed = {info.name: info for info in mempool.list_pools() if info.name not in before}
    assert list(listed).index("a model") < list(listed).index("a request")
    assert listed["a request"] == mempool.PoolInfo(
        "a request", "cpu", "a model", 1024, 1024 + 5120, None, MIB, isolated=False, closed=False
    )
    assert (listed["a model"].used_bytes, listed["a model"].limit) == (1024, 64 * MIB)
    assert (listed["forgotten"].used_bytes, listed["forgotten"].closed) == (64, True)
    kept.clear()
    assert "forgotten" not in {info.name for info in mempool.list_pools()}


def test_a_coroutine_may_hold_a_generators_pool(enabled: None) -> None:
    """A stay that a step opens and does not close ends with the step, whatever closes it later."""
    outer, inner = mempool.MemoryPool("outer"), mempool.MemoryPool("inner")

    async def work() -> Coroutine[Any, Any, None] | None:
        steps = dependency(inner)
        next(steps)
        assert mempool.current_pool() is inner
        await asyncio.sleep(0)
        assert mempool.current_pool() is outer
        with pytest.raises(RuntimeError, match="'inner'"):
            next(steps, None)
        return None

    asyncio.run(mempool.in_pool(outer, work()))


def test_callbacks_of_a_loop_may_nest_pools(enabled: None) -> None:
    outer, inner = mempool.MemoryPool("outer"), mempool.MemoryPool("inner")
    seen: list[object] = []

    def callback() -> None:
        with mempool.use_pool(outer):
            seen.append(mempool.current_pool())
            with mempool.use_pool(inner):
                seen.append(mempool.current_pool())
            seen.append(mempool.current_pool())

    async def main() -> None:
        problems: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0.01)
        assert problems == []

    asyncio.run(main())
    assert seen == [outer, inner, outer]


def test_requests_whose_blocks_end_elsewhere_leave_nothing(enabled: None) -> None:
    gc.collect()
    before = len(mempool.list_pools("cpu"))
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(20):
            steps = dependency(mempool.MemoryPool("request"))
            first.submit(next, steps).result()
            second.submit(next, steps, None).result()
        del steps
        gc.collect()
        assert len(mempool.list_pools("cpu")) == before
        assert first.submit(lambda: len(scopes.context.get())).result() <= 1
