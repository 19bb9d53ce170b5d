"""Each entry point that torch's stock pluggable allocator refuses, with mempool in its place. Private pools, sharing
and graphs have files of their own."""

from __future__ import annotations

import ctypes
import pickle
from pathlib import Path

import control
import pytest
import torch
from torch_release import PLACES_BLOCKS, TORCH

import mempool

MIB = 1 << 20


pytestmark = pytest.mark.usefixtures("enabled")


def block(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8, device="cuda")


def test_it_is_what_torch_uses() -> None:
    assert torch.cuda.memory.get_allocator_backend() == "mempool"
    before = mempool.memory_allocated("cuda")
    kept = block(5)
    assert mempool.memory_allocated("cuda") == before + 5 * MIB
    assert torch.cuda.memory_allocated() == torch.accelerator.memory.memory_allocated() == before + 5 * MIB
    assert kept.data_ptr() % 64 == 0


# ---- getDeviceStats, resetPeakStats, resetAccumulatedStats


def test_statistics_and_peaks() -> None:
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.reset_accumulated_memory_stats()
    base = torch.cuda.memory_allocated()
    first = block(8)
    del first
    second = block(2)
    assert torch.cuda.memory_allocated() == base + second.nbytes
    assert torch.cuda.max_memory_allocated() == base + 8 * MIB
    assert torch.cuda.memory_reserved() >= torch.cuda.memory_allocated()
    stats = torch.cuda.memory_stats()
    assert stats["allocation.all.allocated"] == 2
    assert stats["allocated_bytes.large_pool.freed"] == 8 * MIB
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == base + second.nbytes
    torch.cuda.reset_accumulated_memory_stats()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == 0
    assert "Allocated memory" in torch.cuda.memory_summary()
    assert mempool.memory_stats("cuda")["allocated_bytes.all.current"] == base + second.nbytes


# ---- snapshot, recordHistory, isHistoryEnabled, attachOutOfMemoryObserver


def test_a_snapshot_has_every_block_and_where_it_was_made(tmp_path: Path) -> None:
    torch.cuda.memory._record_memory_history(max_entries=100)
    assert torch._C._cuda_isHistoryEnabled()
    try:
        kept = block(7)
        dropped = block(3)
        address = dropped.data_ptr()
        del dropped
        snapshot = torch.cuda.memory._snapshot()
        torch.cuda.memory._dump_snapshot(str(tmp_path / "snapshot.pickle"))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    blocks = {b["address"]: b for s in snapshot["segments"] for b in s["blocks"]}
    mine = blocks[kept.data_ptr()]
    assert (mine["size"], mine["requested_size"], mine["state"]) == (7 * MIB, 7 * MIB, "active_allocated")
    assert any(frame["name"] == "block" for frame in mine["frames"])
    actions = [entry["action"] for entry in snapshot["device_traces"][0] if entry["addr"] == address]
    assert actions[:3] == ["alloc", "free_requested", "free_completed"]
    for segment in snapshot["segments"]:
        assert segment["total_size"] == sum(b["size"] for b in segment["blocks"])
    written = pickle.loads((tmp_path / "snapshot.pickle").read_bytes())
    assert {s["address"] for s in written["segments"]} == {s["address"] for s in snapshot["segments"]}
    from torch.cuda._memory_viz import segment_plot, trace_plot

    assert "html" in segment_plot(written)
    assert "html" in trace_plot(written)


def test_history_that_is_off_keeps_nothing() -> None:
    assert not torch._C._cuda_isHistoryEnabled()
    kept = block(4)
    snapshot = torch.cuda.memory._snapshot()
    assert all(not trace for trace in snapshot["device_traces"])
    assert kept.is_cuda


def test_observers_hear_of_out_of_memory(standin: control.Standin) -> None:
    heard: list[tuple[int, int]] = []
    torch._C._cuda_attach_out_of_memory_observer(
        lambda device, asked, total, free: heard.append((device, asked))  # type: ignore[arg-type]
    )
    standin.set_capacity(standin.used() + 20 * MIB)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        block(40)
    assert heard[-1] == (0, 40 * MIB)
    text = str(caught.value)
    assert "Tried to allocate 40.00 MiB" in text
    assert "GPU 0 has a total capacity" in text
    info = mempool.oom_info(caught.value)
    assert info is not None
    assert info["reason"] == "backend_refused"
    assert info["device"] == "cuda:0"


# ---- getMemoryFraction, setMemoryFraction


def test_the_memory_fraction_is_a_limit() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    assert torch.cuda.get_per_process_memory_fraction() == 1.0
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64 * MIB) / total)
    try:
        assert torch.cuda.get_per_process_memory_fraction() < 1.0
        kept = block(32)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            block(64)
        info = mempool.oom_info(caught.value)
        assert info is not None
        assert info["reason"] == "device_limit"
        assert kept.is_cuda
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert mempool.get_limit("cuda") is None


# ---- cacheInfo, getExpandableSegmentSizes, emptyCache, getBaseAllocation


def test_what_is_free_is_known(standin: control.Standin) -> None:
    kept = block(16)
    del kept
    assert torch.cuda.memory_reserved() >= 16 * MIB
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == 0
    assert standin.used() == 0


def test_caching_can_be_switched_off() -> None:
    from torch.cuda.memory import caching_allocator_enable

    caching_allocator_enable(False)
    try:
        if TORCH >= (2, 12):
            assert not torch._C._cuda_cudaCachingAllocator_is_enabled()
        kept = block(6)
        del kept
        assert torch.cuda.memory_reserved() == 0
    finally:
        caching_allocator_enable(True)


def test_raw_blocks_and_foreign_pointers() -> None:
    address = torch.cuda.caching_allocator_alloc(3 * MIB)
    assert torch.cuda.memory_allocated() >= 3 * MIB
    torch.cuda.caching_allocator_delete(address)
    with pytest.raises(RuntimeError, match="invalid device pointer"):
        torch.cuda.caching_allocator_delete(address + 64)
    with pytest.raises(RuntimeError, match="invalid device pointer"):
        torch.cuda.caching_allocator_delete(4096)


# ---- recordStream


def test_a_block_of_another_stream_waits_for_it(standin: control.Standin) -> None:
    side = torch.cuda.Stream()
    for mib in (1, 4):
        kept = block(mib)
        address = kept.data_ptr()
        with standin.held(side):
            standin.write_later(side, address, mib * MIB, seed=mib)
            standin.check_later(side, address, mib * MIB, seed=mib)
            kept.record_stream(side)
            del kept
            assert torch.cuda.memory_stats()["active.all.current"] > torch.cuda.memory_stats()["allocation.all.current"]
            others = [block(mib) for _ in range(3)]
            assert address not in [other.data_ptr() for other in others]
            del others
        torch.cuda.synchronize()
    assert standin.violations() == 0


# ---- enablePeerAccess, memcpyAsync


def test_peer_access_and_copies_between_devices(standin: control.Standin) -> None:
    there = torch.arange(1000.0).to("cuda:0")
    assert torch.equal(there.to("cuda:1").cpu(), torch.arange(1000.0))
    assert standin.count("cudaMemcpyPeerAsync") + standin.count("cudaMemcpyAsync") > 0
    assert torch.cuda.memory_allocated(1) == 0
    kept = torch.empty(MIB, device="cuda:1")
    assert torch.cuda.memory_allocated(1) == mempool.memory_allocated("cuda:1") == 4 * MIB
    del kept


# ---- what Python does not reach: cacheInfo, getExpandableSegmentSizes, getBaseAllocation, attachAllocatorTraceTracker,
# ---- attachOomRejectionObserver, allocateWithAddress


def test_sizes_that_cudnn_and_others_ask_for(calls: ctypes.CDLL) -> None:
    kept = block(24)
    free = torch.cuda.mem_get_info()[0]
    assert calls.cache_info(0) >= free
    assert calls.expandable_bytes(0) == torch.cuda.memory_reserved()
    base = ctypes.c_void_p()
    assert calls.base_allocation(kept.data_ptr(), ctypes.byref(base)) >= 24 * MIB
    assert base.value is not None
    assert base.value <= kept.data_ptr()


def test_trackers_hear_of_every_entry(calls: ctypes.CDLL) -> None:
    alloc, requested, completed, mapped = 0, 1, 2, 5
    calls.attach_tracker()
    calls.attach_rejection_observer()
    before = [calls.tracked(action) for action in (alloc, requested, completed, mapped)]
    kept = block(48)
    del kept
    after = [calls.tracked(action) for action in (alloc, requested, completed, mapped)]
    assert [b - a for a, b in zip(before[:3], after[:3], strict=True)] == [1, 1, 1]
    assert after[3] > before[3]


@PLACES_BLOCKS
def test_a_block_at_a_given_address(calls: ctypes.CDLL) -> None:
    before = torch.cuda.memory_allocated()
    kept = block(8)
    address = kept.data_ptr()
    assert calls.allocate_with_address(4 * MIB, address) == 0  # it is live
    del kept
    assert calls.allocate_with_address(4 * MIB, address) == 1
    assert torch.cuda.memory_allocated() == before + 4 * MIB
    assert calls.allocate_with_address(4 * MIB, address) == 0
    assert calls.allocate_with_address(MIB, 4096) == 0
    calls.free_kept()
    assert torch.cuda.memory_allocated() == before
