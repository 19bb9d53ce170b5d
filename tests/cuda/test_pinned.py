"""Pinned host memory from mempool: what torch's own allocator of it does, exact sizes, limits and pools."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import control
import pytest
import torch
from host_allocator import HostAllocator

import mempool
from mempool import _core

MIB = 1 << 20


def _device() -> _core.Device:
    return _core.pinned_device("")


def _invariants_hold() -> None:
    assert _device().check_invariants() == ""


@pytest.fixture
def pinned() -> Iterator[None]:
    """Pinned memory from mempool, with nothing held before and after."""
    torch.cuda.init()
    mempool.enable("pinned")
    gc.collect()
    torch.cuda.synchronize()
    mempool.trim("pinned")
    yield
    mempool.set_limit(None, "pinned")
    mempool.set_limit(None, "pinned", soft=True)
    gc.collect()
    torch.cuda.synchronize()
    _invariants_hold()
    mempool.trim("pinned")
    assert mempool.memory_reserved("pinned") == 0
    mempool.disable("pinned")


@pytest.fixture(scope="module")
def host(compiled: Callable[[str], Path]) -> HostAllocator:
    return HostAllocator(compiled("host_calls.cpp"))


def test_it_is_enabled_by_its_name_alone(run_on_device: Callable[..., str]) -> None:
    script = """
import mempool
print(sorted(mempool.enable()), mempool.is_enabled("pinned"))
print(mempool.enable("pinned"), mempool.is_enabled("pinned"))
mempool.disable("pinned")
print(mempool.is_enabled("pinned"), mempool.is_enabled("cpu"))
"""
    said = run_on_device(script).splitlines()
    assert said == ["['cpu', 'cuda'] False", "{'pinned': True} True", "False True"]


def test_whatever_makes_pinned_tensors(pinned: None) -> None:
    made = [
        torch.empty(1000, pin_memory=True),
        torch.arange(300_000).pin_memory(),
        torch.zeros(3 * MIB, dtype=torch.uint8, pin_memory=True),
    ]
    assert all(each.is_pinned() for each in made)
    assert mempool.memory_stats("pinned")["allocation.all.current"] == len(made)
    assert torch.equal(made[1], torch.arange(300_000))
    assert not torch.empty(1000).is_pinned()
    del made
    assert mempool.memory_allocated("pinned") == 0


def test_a_data_loader_pins_its_batches(pinned: None) -> None:
    data = torch.utils.data.TensorDataset(torch.arange(4000).reshape(40, 100))
    batches = [batch for (batch,) in torch.utils.data.DataLoader(data, batch_size=8, pin_memory=True, num_workers=2)]
    assert all(batch.is_pinned() for batch in batches)
    assert torch.equal(torch.cat(batches), data.tensors[0])
    assert mempool.memory_stats("pinned")["allocation.all.allocated"] >= len(batches)


def test_copies_without_a_wait_carry_their_data(pinned: None) -> None:
    source = torch.arange(MIB, dtype=torch.int32).pin_memory()
    there = source.to("cuda", non_blocking=True)
    back = torch.empty(MIB, dtype=torch.int32, pin_memory=True)
    back[10:].copy_(there[10:], non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(back[10:], source[10:])


# ---- reuse ----


@pytest.mark.parametrize("size", [100, 40_000, 700_000, 5 * MIB])
def test_a_freed_block_serves_the_next_request(pinned: None, size: int) -> None:
    first = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    place = first.data_ptr()
    del first
    assert torch.empty(size, dtype=torch.uint8, pin_memory=True).data_ptr() == place


@pytest.mark.parametrize("size", [100, 40_000, 700_000, 5 * MIB])
def test_a_block_that_a_copy_reads_is_not_reused_before_its_end(
    pinned: None, standin: control.Standin, size: int
) -> None:
    stream = torch.cuda.Stream()
    there = torch.empty(size, dtype=torch.uint8, device="cuda")
    with standin.held(stream):
        source = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        place = source.data_ptr()
        with torch.cuda.stream(stream):
            there.copy_(source, non_blocking=True)
        del source
        during = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(4)]
        assert place not in [each.data_ptr() for each in during]
        assert mempool.memory_stats("pinned")["active.all.current"] == 5
    torch.cuda.synchronize()
    after = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(80)]
    assert place in [each.data_ptr() for each in after]


def test_a_slice_of_a_block_keeps_all_of_it(pinned: None, standin: control.Standin) -> None:
    stream = torch.cuda.Stream()
    with standin.held(stream):
        whole = torch.empty(5 * MIB, dtype=torch.uint8, pin_memory=True)
        place = whole.data_ptr()
        with torch.cuda.stream(stream):
            whole[MIB : 2 * MIB].to("cuda", non_blocking=True)
        del whole
        assert torch.empty(5 * MIB, dtype=torch.uint8, pin_memory=True).data_ptr() != place
    torch.cuda.synchronize()


@pytest.mark.gpus(2)
def test_streams_of_all_devices_are_waited_for(pinned: None, standin: control.Standin) -> None:
    streams = [torch.cuda.Stream(device) for device in range(2)] + [torch.cuda.default_stream(1)]
    for stream in streams:
        with standin.held(stream) if stream.cuda_stream else standin.held(streams[0]):
            block = torch.empty(2 * MIB, dtype=torch.uint8, pin_memory=True)
            place = block.data_ptr()
            with torch.cuda.device(stream.device), torch.cuda.stream(stream):
                block.to(stream.device, non_blocking=True)
            del block
            again = torch.empty(2 * MIB, dtype=torch.uint8, pin_memory=True)
            if stream.cuda_stream:
                assert again.data_ptr() != place
        torch.cuda.synchronize(0)
        torch.cuda.synchronize(1)
        del again
        mempool.trim("pinned")
        assert mempool.memory_reserved("pinned") == 0


def test_what_is_recorded_and_what_is_not(pinned: None, host: HostAllocator) -> None:
    """By the block's context or its address: an alias of a part of it has neither, and torch records nothing then."""
    stream = torch.cuda.current_stream()
    block = host.allocate(100)
    assert host.record(block.address, block.context, stream)
    assert host.record(block.address + 1, block.context, stream)
    assert host.record(block.address, 0, stream)
    assert not host.record(block.address + 1, 0, stream)
    unpinned = torch.empty(100, dtype=torch.uint8)
    assert not host.record(unpinned.data_ptr(), unpinned.data_ptr(), stream)
    host.free(block)
    host.empty_cache()
    assert not host.record(block.address, block.context, stream)


def test_no_bytes_are_no_block(pinned: None, host: HostAllocator) -> None:
    block = host.allocate(0)
    assert (block.address, block.context) == (0, 0)
    host.free(block)
    assert torch.empty(0, pin_memory=True).numel() == 0
    assert mempool.memory_reserved("pinned") == 0


def test_blocks_from_before_and_after_are_their_makers(pinned: None, host: HostAllocator) -> None:
    mempool.disable("pinned")
    stream = torch.cuda.Stream()
    theirs = torch.ones(300_000, pin_memory=True)
    assert mempool.memory_allocated("pinned") == 0
    mempool.enable("pinned")
    ours = torch.ones(300_000, pin_memory=True)
    assert mempool.memory_stats("pinned")["allocation.all.current"] == 1
    with torch.cuda.stream(stream):
        assert theirs.to("cuda", non_blocking=True).numel() == theirs.numel()
    context = theirs.untyped_storage()
    assert host.record(context.data_ptr(), 0, stream)
    mempool.disable("pinned")
    with torch.cuda.stream(stream):
        ours.to("cuda", non_blocking=True)
    place = ours.data_ptr()
    assert host.record(place, place, stream)
    del theirs, context, ours
    torch.cuda.synchronize()
    mempool.enable("pinned")
    assert mempool.memory_allocated("pinned") == 0


def test_an_emptied_cache_holds_nothing(pinned: None, host: HostAllocator, standin: control.Standin) -> None:
    host.empty_cache()  # torch's own, too
    before = standin.pinned()
    kept = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in (100, 700_000, 20 * MIB)]
    assert standin.pinned() - before == mempool.memory_reserved("pinned") > 20 * MIB
    del kept
    host.empty_cache()
    assert mempool.memory_reserved("pinned") == 0
    assert standin.pinned() == before


def test_torchs_statistics_are_ours(pinned: None) -> None:
    torch.cuda.reset_accumulated_host_memory_stats()
    torch.cuda.reset_peak_host_memory_stats()
    kept = [torch.empty(3 * MIB, dtype=torch.uint8, pin_memory=True) for _ in range(3)]
    stats = torch.cuda.host_memory_stats()
    assert stats["active_requests.current"] == 3
    assert stats["active_bytes.current"] == stats["allocated_bytes.current"] == 9 * MIB
    assert stats["num_host_alloc"] - stats["num_host_free"] == stats["allocations.current"] == 3
    assert stats["host_alloc_time.count"] == 3
    del kept
    torch.cuda.reset_peak_host_memory_stats()
    stats = torch.cuda.host_memory_stats()
    assert stats["active_requests.peak"] == 0
    assert stats["active_requests.freed"] == 3
    assert stats["allocated_bytes.current"] == 9 * MIB


def test_threads(pinned: None) -> None:
    problems: list[str] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        stream = torch.cuda.Stream()
        kept: list[tuple[torch.Tensor, int]] = []
        for step in range(300):
            block = torch.empty(chance.choice((64, 5000, 200_000, 2 * MIB)), dtype=torch.uint8, pin_memory=True)
            value = (seed * 7 + step) % 251
            block[:64].fill_(value)
            if step % 3 == 0:
                with torch.cuda.stream(stream):
                    block.to("cuda", non_blocking=True)
            kept.append((block, value))
            if len(kept) > 10:
                old, expected = kept.pop(chance.randrange(len(kept)))
                if not bool((old[:64] == expected).all()):
                    problems.append("another thread wrote to a live block")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    _invariants_hold()


# ---- sizes ----


@pytest.mark.parametrize("size", [700_001, 3 * MIB + 1, 33 * MIB + 1])
def test_pinned_bytes_are_hardly_more_than_what_is_asked_for(
    pinned: None, standin: control.Standin, size: int, record_property: Callable[[str, object], None]
) -> None:
    def ratio() -> float:
        before = standin.pinned()
        kept = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(256 * MIB // size + 2)]
        return (standin.pinned() - before) / sum(each.numel() for each in kept)

    ours = ratio()
    mempool.disable("pinned")
    record_property("torch's own", ratio())  # for information: it rounds to powers of two
    torch._C._host_emptyCache()
    mempool.enable("pinned")
    record_property("mempool", ours)
    assert ours <= 1.05


def test_mixed_sizes_are_exact_too(pinned: None, standin: control.Standin) -> None:
    chance = random.Random(5)
    before = standin.pinned()
    kept: list[torch.Tensor] = []
    asked = 0
    while asked < 512 * MIB:
        size = int(2 ** chance.uniform(15, 26))
        kept.append(torch.empty(size, dtype=torch.uint8, pin_memory=True))
        asked += size
        if asked >= 256 * MIB:
            assert standin.pinned() - before <= 1.05 * asked


# ---- limits, pools, giving back ----


def test_limits_hold_and_their_errors_tell(pinned: None) -> None:
    mempool.set_limit("8MiB", "pinned")
    assert mempool.get_limit("pinned") == 8 * MIB
    kept = torch.empty(6 * MIB, dtype=torch.uint8, pin_memory=True)
    with pytest.raises(torch.OutOfMemoryError) as error:
        torch.empty(4 * MIB, dtype=torch.uint8, pin_memory=True)
    info = mempool.oom_info(error.value)
    assert info is not None
    assert (info["device"], info["reason"], info["limit"]) == ("pinned", "device_limit", 8 * MIB)
    assert mempool.memory_reserved("pinned") == kept.numel()


def test_a_percentage_is_of_the_hosts_memory(pinned: None) -> None:
    mempool.set_limit("50%", "pinned")
    assert mempool.get_limit("pinned") == _core.usable_memory_bytes() // 2


def test_what_the_host_has_not_is_out_of_memory(pinned: None) -> None:
    kept = torch.empty(MIB, dtype=torch.uint8, pin_memory=True)
    before = mempool.memory_reserved("pinned")
    with pytest.raises(torch.OutOfMemoryError) as error:
        torch.empty(64 * _core.usable_memory_bytes(), dtype=torch.uint8, pin_memory=True)
    info = mempool.oom_info(error.value)
    assert info is not None
    assert (info["device"], info["reason"]) == ("pinned", "backend_refused")
    assert mempool.memory_reserved("pinned") <= before
    assert kept.is_pinned()


def test_pools_are_charged(pinned: None) -> None:
    pool = mempool.MemoryPool("offload", device="pinned", limit="4MiB")
    assert pool.device == "pinned"
    with mempool.use_pool(pool):
        kept = torch.empty(3 * MIB, dtype=torch.uint8, pin_memory=True)
        ordinary = torch.empty(64 * MIB, dtype=torch.uint8)  # of another device
        with pytest.raises(torch.OutOfMemoryError, match="offload"):
            torch.empty(2 * MIB, dtype=torch.uint8, pin_memory=True)
    assert ordinary.numel() == 64 * MIB
    assert pool.used_bytes() == kept.numel()
    assert [each.name for each in mempool.list_pools("pinned")] == ["offload"]
    del kept
    assert pool.used_bytes() == 0


def test_an_isolated_pool_has_registrations_of_its_own_and_does_not_sleep(pinned: None) -> None:
    pool = mempool.MemoryPool("own", device="pinned", isolated=True)
    with mempool.use_pool(pool):
        kept = torch.empty(3 * MIB, dtype=torch.uint8, pin_memory=True)
    assert pool.total_bytes() == 3 * MIB
    with pytest.raises(mempool.ConfigError, match="cannot sleep"):
        pool.sleep()
    assert kept.is_pinned()
    del kept
    pool.close()


def test_pinned_tensors_are_adopted(pinned: None) -> None:
    tensor = torch.arange(300_000).pin_memory()
    pool = mempool.MemoryPool("home", device="pinned")
    report = mempool.adopt(tensor, pool)
    assert report.moved_bytes == tensor.nbytes
    assert tensor.is_pinned()
    assert torch.equal(tensor, torch.arange(300_000))
    assert pool.used_bytes() > 0
    with pytest.raises(mempool.ConfigError, match="is on pinned"):
        mempool.adopt(tensor, mempool.MemoryPool("cpu", device="cpu"))
    with pytest.raises(mempool.ConfigError, match="is on cpu"):
        mempool.adopt(torch.ones(5), pool)


def test_soft_limit_and_pressure(pinned: None) -> None:
    calls: list[str] = []
    handle = mempool.on_pressure(lambda pool, needed: calls.append(pool))
    mempool.set_limit("2MiB", "pinned", soft=True)
    kept = torch.empty(3 * MIB, dtype=torch.uint8, pin_memory=True)
    handle.remove()
    assert kept.numel() == 3 * MIB
    assert calls


def test_memory_decays_but_not_under_a_copy(pinned: None, standin: control.Standin) -> None:
    stream = torch.cuda.Stream()
    with standin.held(stream):
        block = torch.empty(5 * MIB, dtype=torch.uint8, pin_memory=True)
        with torch.cuda.stream(stream):
            block.to("cuda", non_blocking=True)
        del block
        assert _device().trim(0) == 5 * MIB  # a trim waits for the copy
    assert standin.pending(stream) == 0


def test_snapshots_and_summaries(pinned: None) -> None:
    mempool.record_history(True, "pinned")
    kept = torch.empty(3 * MIB, dtype=torch.uint8, pin_memory=True)
    snapshot = mempool.memory_snapshot("pinned")
    mempool.record_history(False, "pinned")
    live = [
        block for segment in snapshot["segments"] for block in segment["blocks"] if block["state"] == "active_allocated"
    ]
    assert [block["requested_size"] for block in live] == [kept.numel()]
    assert "pinned" in mempool.memory_summary("pinned")
