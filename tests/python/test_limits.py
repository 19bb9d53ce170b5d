"""Limits of devices and pools, and the errors of requests that pass them."""

from __future__ import annotations

import contextlib
import pickle
import resource
import threading
from collections.abc import Callable

import pytest
import torch

import mempool
from mempool import _core

MIB = 1 << 20


def bytes_of(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8)


@pytest.mark.parametrize("value", ["12 GiBs", "", "GiB", "-1MiB", "0", "nan", "101%", 0, -5, 2**63, True, 1.5, [1]])
def test_bad_sizes_are_refused_everywhere(enabled: None, value: object) -> None:
    for call in (
        lambda: mempool.enable("cpu", limit=value),
        lambda: mempool.enable("cpu", soft_limit=value),
        lambda: mempool.set_limit(value, "cpu"),
        lambda: mempool.MemoryPool("p", limit=value),
        lambda: mempool.MemoryPool("p").set_limit(value),
    ):
        with pytest.raises(mempool.ConfigError):
            call()
    assert mempool.get_limit("cpu") is None


def test_a_bad_limit_does_not_enable() -> None:
    mempool.disable()
    with pytest.raises(mempool.ConfigError):
        mempool.enable("cpu", limit="12 GiBs")
    assert not mempool.is_enabled("cpu")


def test_limits_are_read_in_every_form(enabled: None) -> None:
    mempool.set_limit("8GiB")
    assert mempool.get_limit() == 8 << 30
    mempool.set_limit(9 << 30)
    assert mempool.get_limit() == 9 << 30
    mempool.set_limit("50%")
    assert mempool.get_limit() == _core.usable_memory_bytes() // 2
    mempool.set_limit(None)
    assert mempool.get_limit() is None


def test_a_device_limit_bounds_what_is_held(enabled: None) -> None:
    mempool.empty_cache()
    limit = mempool.memory_reserved() + 20 * MIB
    mempool.set_limit(limit)
    kept = bytes_of(16 * MIB)
    with pytest.raises(mempool.OutOfMemoryError) as caught:
        bytes_of(16 * MIB)
    info = mempool.oom_info(caught.value)
    assert info is not None
    assert info["reason"] == "device_limit"
    assert info["pool"] == "default"
    assert info["limit"] == limit
    assert info["requested"] == 16 * MIB
    assert info["held"] == mempool.memory_reserved() <= limit
    assert info["largest_free"] < 16 * MIB
    assert mempool.max_memory_reserved() <= max(limit, mempool.max_memory_reserved())
    del kept
    again = bytes_of(16 * MIB)
    del again


def test_a_refused_request_holds_nothing_more_and_empties_no_cache(enabled: None) -> None:
    kept = bytes_of(100 * MIB)
    waiting = bytes_of(16 * MIB)
    mempool.set_limit("1GiB")
    del waiting
    held, peak = mempool.memory_reserved(), mempool.max_memory_reserved()
    ooms = mempool.memory_stats()["num_ooms"]
    for size in (2 << 30, 1 << 40):  # neither can ever be, so what is free stays for those that can
        with pytest.raises(mempool.OutOfMemoryError, match="device_limit"):
            bytes_of(size)
        assert (mempool.memory_reserved(), mempool.max_memory_reserved()) == (held, peak)
    with pytest.raises(mempool.OutOfMemoryError, match="device_limit"):
        bytes_of((1 << 30) - 50 * MIB)
    assert mempool.memory_reserved() <= held
    assert mempool.max_memory_reserved() == peak
    assert mempool.memory_stats()["num_ooms"] == ooms + 3
    del kept


def test_a_limit_below_what_is_held_is_refused_and_free_memory_given_up_for_one_that_is_not(enabled: None) -> None:
    kept = bytes_of(32 * MIB)
    with pytest.raises(mempool.ConfigError, match="free tensors first"):
        mempool.set_limit("16MiB")
    assert mempool.get_limit() is None
    del kept
    limit = mempool.memory_reserved() - 30 * MIB
    mempool.set_limit(limit)
    assert mempool.memory_reserved() <= limit


def test_oom_info_survives_pickling_and_knows_its_own(enabled: None) -> None:
    pool = mempool.MemoryPool('name with "quotes" and \\ and ]', limit="1MiB")
    with mempool.use_pool(pool), pytest.raises(mempool.OutOfMemoryError) as caught:
        bytes_of(2 * MIB)
    again = pickle.loads(pickle.dumps(caught.value))
    info = mempool.oom_info(again)
    assert info is not None
    assert info == mempool.oom_info(caught.value)
    assert info["pool"] == pool.name
    assert (info["requested"], info["allocated"], info["limit"]) == (2 * MIB, 0, MIB)
    assert mempool.oom_info(ValueError("something else")) is None


def test_more_than_the_machine_has_is_refused_at_once(enabled: None) -> None:
    peak, held = mempool.max_memory_allocated(), mempool.memory_reserved()
    resident = resident_bytes()
    with pytest.raises(mempool.OutOfMemoryError) as caught:
        bytes_of(10**13)
    info = mempool.oom_info(caught.value)
    assert info is not None
    assert info["reason"] == "backend_refused"
    assert info["limit"] is None
    assert mempool.max_memory_allocated() == peak
    assert mempool.memory_reserved() <= held
    assert resident_bytes() - resident < 16 * MIB  # no records are made for what is refused


def test_a_pool_cannot_pretend_to_be_another_in_oom_info(enabled: None) -> None:
    name = "[mempool.oom reason=x device=cpu requested=1 allocated=1 limit=1 held=1 largest_free=1 pressure_calls=0"
    pool = mempool.MemoryPool(name + ' pool="spoof"]', limit="1MiB")
    with mempool.use_pool(pool), pytest.raises(mempool.OutOfMemoryError) as caught:
        bytes_of(2 * MIB)
    info = mempool.oom_info(caught.value)
    assert info is not None
    assert (info["pool"], info["requested"]) == (pool.name, 2 * MIB)


def test_an_overflowing_size_is_out_of_memory(enabled: None) -> None:
    with pytest.raises(mempool.OutOfMemoryError) as caught:
        bytes_of(2**62)
    info = mempool.oom_info(caught.value)
    assert info is not None
    assert info["reason"] == "size_overflow"


def test_a_pool_limit_is_exact_with_sixteen_threads_racing(live_bytes: Callable[[], int]) -> None:
    limit = 3 * MIB + 7 * 64
    pool = mempool.MemoryPool("race", limit=limit)
    kept: list[list[torch.Tensor]] = [[] for _ in range(16)]

    def race(mine: list[torch.Tensor]) -> None:
        with mempool.use_pool(pool):
            for size in (1024, 64):
                with contextlib.suppress(mempool.OutOfMemoryError):
                    while True:
                        mine.append(bytes_of(size))

    threads = [threading.Thread(target=race, args=(mine,)) for mine in kept]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.used_bytes() == pool.peak_bytes() == limit == live_bytes()
    assert pool.stats()["num_ooms"] >= 32
    kept.clear()
    threads.clear()
    assert pool.used_bytes() == 0


def test_ten_thousand_refusals_change_nothing(enabled: None) -> None:
    pool = mempool.MemoryPool("full", limit="1MiB")
    before = mempool.memory_stats()

    def refuse(times: int) -> None:
        with mempool.use_pool(pool):
            for _ in range(times):
                with pytest.raises(mempool.OutOfMemoryError):
                    bytes_of(2 * MIB)

    refuse(200)  # whatever grows once has grown
    resident = resident_bytes()
    refuse(10_000)
    after = mempool.memory_stats()
    assert resident_bytes() - resident < 2 * MIB
    assert after["num_ooms"] - before["num_ooms"] == 10_200
    for key in ("allocated_bytes.all.current", "allocated_bytes.all.peak", "reserved_bytes.all.current"):
        assert after[key] == before[key]
    assert pool.stats()["num_ooms"] == 10_200
    assert pool.used_bytes() == 0


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_threads_that_end_give_their_caches_back(enabled: None) -> None:
    def work() -> None:
        for _ in range(3):
            kept = [bytes_of(30_000) for _ in range(100)]
            del kept

    mempool.empty_cache()
    mempool.reset_peak_memory_stats()  # of the tests before
    for _ in range(20):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    stats = mempool.memory_stats()
    # 12 MB of blocks were made by each round of threads; what they cached is free for all again, not stranded.
    free = stats["reserved_bytes.all.current"] - stats["allocated_bytes.all.current"]
    assert free - stats["inactive_split_bytes.all.current"] < 5 * MIB
    assert stats["reserved_bytes.all.peak"] < 64 * MIB + stats["allocated_bytes.all.peak"]
