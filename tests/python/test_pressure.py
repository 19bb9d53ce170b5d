"""Pressure callbacks: when they run, and what they may do."""

from __future__ import annotations

import contextlib
import gc
import signal
import time
from collections.abc import Callable

import pytest
import torch

import mempool

MIB = 1 << 20


def bytes_of(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8)


def test_a_callback_frees_what_is_needed(enabled: None) -> None:
    pool = mempool.MemoryPool("cache", limit="8MiB")
    calls: list[tuple[str, int]] = []
    with mempool.use_pool(pool):
        droppable = [bytes_of(6 * MIB)]

        def drop(name: str, needed: int) -> None:
            calls.append((name, needed))
            droppable.clear()

        handle = mempool.on_pressure(drop)
        kept = bytes_of(5 * MIB)
    handle.remove()
    handle.remove()
    assert calls == [("cache", 3 * MIB)]
    assert pool.used_bytes() == 5 * MIB
    assert pool.stats()["num_ooms"] == 0
    assert pool.stats()["num_pressure_calls"] == 1
    del kept


def test_an_error_in_a_callback_is_chained(enabled: None) -> None:
    pool = mempool.MemoryPool("p", limit="1MiB")
    handle = mempool.on_pressure(lambda name, needed: 1 // 0)
    try:
        with pytest.raises(mempool.OutOfMemoryError) as caught, mempool.use_pool(pool):
            bytes_of(2 * MIB)
    finally:
        handle.remove()
    assert "ZeroDivisionError" in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    info = mempool.oom_info(caught.value)
    assert info is not None
    assert isinstance(info["callback_error"], ZeroDivisionError)
    assert info["pressure_calls"] == 1


def test_a_callback_may_allocate_and_fail_without_recursion(enabled: None) -> None:
    pool = mempool.MemoryPool("p", limit="1MiB")
    depth: list[int] = []

    def callback(name: str, needed: int) -> None:
        depth.append(needed)
        with mempool.use_pool(pool):
            bytes_of(100)
            with pytest.raises(mempool.OutOfMemoryError):
                bytes_of(3 * MIB)

    handle = mempool.on_pressure(callback)
    try:
        with mempool.use_pool(pool), pytest.raises(mempool.OutOfMemoryError) as caught:
            bytes_of(2 * MIB)
    finally:
        handle.remove()
    assert depth == [MIB]
    info = mempool.oom_info(caught.value)
    assert info is not None
    assert info["requested"] == 2 * MIB


def test_oom_info_is_of_the_outer_error_when_a_callback_fails_for_memory_too(enabled: None) -> None:
    outer, inner = mempool.MemoryPool("outer", limit="1MiB"), mempool.MemoryPool("inner", limit="1MiB")

    def callback(name: str, needed: int) -> None:
        assert mempool.memory_stats()["allocated_bytes.all.current"] >= 0
        bytes_of(2 * MIB)  # charged to no pool
        with mempool.use_pool(inner):
            bytes_of(3 * MIB)

    handle = mempool.on_pressure(callback)
    try:
        with pytest.raises(mempool.OutOfMemoryError) as caught, mempool.use_pool(outer):
            bytes_of(8 * MIB)
    finally:
        handle.remove()
    info = mempool.oom_info(caught.value)
    assert info is not None
    assert (info["pool"], info["requested"]) == ("outer", 8 * MIB)
    cause = mempool.oom_info(info["callback_error"])
    assert cause is not None
    assert cause["pool"] == "inner"
    assert outer.used_bytes() == inner.used_bytes() == outer.peak_bytes() == 0


def test_the_error_of_a_callback_keeps_none_of_its_tensors(live_bytes: Callable[[], int]) -> None:
    pool = mempool.MemoryPool("p", limit="1MiB")

    def callback(name: str, needed: int) -> None:
        local = bytes_of(5 * MIB)
        raise ValueError(len(local))

    handle = mempool.on_pressure(callback)
    try:
        for _ in range(3):
            with contextlib.suppress(mempool.OutOfMemoryError), mempool.use_pool(pool):
                bytes_of(2 * MIB)
    finally:
        handle.remove()
    gc.collect()
    assert live_bytes() == 0


def test_an_interrupt_in_a_callback_is_not_lost(enabled: None) -> None:
    mempool.empty_cache()
    mempool.set_limit(mempool.memory_reserved() + 2 * MIB)

    def callback(name: str, needed: int) -> None:
        raise KeyboardInterrupt

    def allocate() -> None:
        with contextlib.suppress(mempool.OutOfMemoryError):
            bytes_of(8 * MIB)
        time.sleep(1)

    handle = mempool.on_pressure(callback)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            allocate()
    finally:
        signal.signal(signal.SIGINT, before)
        handle.remove()


def test_the_soft_limit_of_a_pool_calls_once_for_each_crossing(enabled: None) -> None:
    pool = mempool.MemoryPool("soft", soft_limit="4MiB")
    calls: list[tuple[str, int]] = []
    handle = mempool.on_pressure(lambda name, needed: calls.append((name, needed)))
    try:
        with mempool.use_pool(pool):
            kept = [bytes_of(3 * MIB), bytes_of(3 * MIB), bytes_of(3 * MIB)]
            assert calls == [("soft", 2 * MIB)]
            del kept[1:]
            kept.append(bytes_of(2 * MIB))
    finally:
        handle.remove()
    assert calls == [("soft", 2 * MIB), ("soft", MIB)]
    assert pool.stats()["num_ooms"] == 0
    assert pool.get_limit(soft=True) == 4 * MIB


def test_the_soft_limit_of_the_device_trims_first(enabled: None) -> None:
    mempool.empty_cache()
    base = mempool.memory_reserved()
    mempool.set_limit(base + 16 * MIB, soft=True)
    calls: list[str] = []
    handle = mempool.on_pressure(lambda name, needed: calls.append(name))
    try:
        del_me = bytes_of(12 * MIB)
        del del_me
        kept = bytes_of(14 * MIB)
        assert calls == []  # giving back the 12 free MiB was enough
        assert mempool.memory_reserved() <= base + 16 * MIB
        more = bytes_of(14 * MIB)
        assert calls == ["default"]
    finally:
        handle.remove()
    del kept, more


def test_a_failing_callback_pins_nothing_of_the_request(live_bytes: Callable[[], int]) -> None:
    pool = mempool.MemoryPool("request", limit="64MiB")

    def busy(name: str, needed: int) -> None:
        try:
            {}["entry"]
        except KeyError as error:
            raise RuntimeError("the cache is busy") from error

    def request() -> torch.Tensor:
        activations = bytes_of(10 * MIB)
        try:
            raise LookupError(activations.shape)
        except LookupError:  # while the program handles this, the allocation fails
            return bytes_of(100 * MIB)

    handle = mempool.on_pressure(busy)
    seen: list[dict[str, object] | None] = []
    try:
        for _ in range(6):
            with contextlib.suppress(mempool.OutOfMemoryError), mempool.use_pool(pool):
                try:
                    request()
                except mempool.OutOfMemoryError as error:
                    seen.append(mempool.oom_info(error))
                    raise
            gc.collect()
            assert pool.used_bytes() == 0
    finally:
        handle.remove()
    assert live_bytes() == 0
    for info in seen:
        assert info is not None
        kept = info["callback_error"]
        assert isinstance(kept, RuntimeError)
        assert isinstance(kept.__cause__, KeyError)
        assert kept.__traceback__ is None
        assert kept.__cause__.__traceback__ is None
        assert kept.__cause__.__context__ is None  # the program's own LookupError is no part of it
        if hasattr(kept, "__notes__"):
            assert any("in busy" in note for note in kept.__notes__)


def test_an_error_that_carries_a_tensor_is_named_and_not_kept(live_bytes: Callable[[], int]) -> None:
    pool = mempool.MemoryPool("request", limit="64MiB")

    class Odd(RuntimeError):
        def __repr__(self) -> str:
            raise ValueError("no text for it")

    def busy(name: str, needed: int) -> None:
        raise Odd(bytes_of(MIB)) from StopIteration(bytes_of(MIB))

    handle = mempool.on_pressure(busy)
    try:
        for _ in range(6):
            with pytest.raises(mempool.OutOfMemoryError, match="Odd") as caught, mempool.use_pool(pool):
                bytes_of(100 * MIB)
            info = mempool.oom_info(caught.value)
            assert info is not None
            assert isinstance(info["callback_error"], int)
            del caught
            gc.collect()
    finally:
        handle.remove()
    assert live_bytes() == 0


def test_finders_of_a_batch_size_know_the_error(enabled: None) -> None:
    find_executable_batch_size = pytest.importorskip("accelerate.utils").find_executable_batch_size
    pool = mempool.MemoryPool("training", limit="100MiB")

    @find_executable_batch_size(starting_batch_size=128)
    def train(batch_size: int) -> int:
        with mempool.use_pool(pool):
            return len(bytes_of(batch_size * MIB)) // MIB

    assert 50 <= train() <= 100  # how far it steps down is its own affair


@pytest.mark.parametrize("reason", ["pool", "device"])
def test_the_message_has_the_words_that_others_look_for(enabled: None, reason: str) -> None:
    pool = mempool.MemoryPool("p", limit="1MiB" if reason == "pool" else None)
    if reason == "device":
        mempool.empty_cache()
        mempool.set_limit(mempool.memory_reserved() + 4 * MIB)
    with pytest.raises(RuntimeError) as caught, mempool.use_pool(pool):
        bytes_of(64 * MIB)
    assert len(caught.value.args) == 1
    assert "DefaultCPUAllocator: can't allocate memory" in caught.value.args[0]
    assert mempool.oom_info(caught.value) is not None
