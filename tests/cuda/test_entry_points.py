"""Each entry point that torch's stock pluggable allocator refuses, with mempool in its place."""

from __future__ import annotations

import ctypes
import gc
import pickle
from pathlib import Path
from typing import Any

import control
import pytest
import torch

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


# ---- createOrIncrefPool, getPoolUseCount, releasePool, setUseOnOOM, setNoSplit, checkPoolLiveAllocations


def test_a_mem_pool_has_memory_of_its_own() -> None:
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        inside = block(4)
    outside = block(4)
    assert pool.use_count() == 1
    addresses = [b["address"] for s in pool.snapshot() for b in s["blocks"] if b["state"] == "active_allocated"]
    assert addresses == [inside.data_ptr()]
    del inside
    with torch.cuda.use_mem_pool(pool):
        again = block(4)
    assert again.data_ptr() == addresses[0] != outside.data_ptr()
    held = torch.cuda.memory_reserved()
    del again, pool
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < held


def test_a_pool_lends_itself_when_memory_is_short(standin: control.Standin) -> None:
    pool = torch.cuda.MemPool(use_on_oom=True)
    with torch.cuda.use_mem_pool(pool):
        inside = block(64)
    address = inside.data_ptr()
    del inside
    standin.set_capacity(standin.used() + 4 * MIB)
    borrowed = block(60)
    assert address <= borrowed.data_ptr() < address + 64 * MIB
    del borrowed, pool


def test_blocks_of_a_pool_that_is_not_split_share_no_handle() -> None:
    pool = torch.cuda.MemPool(no_split=True)
    with torch.cuda.use_mem_pool(pool):
        blocks = [torch.empty(3 * MIB + 5, dtype=torch.uint8, device="cuda") for _ in range(3)]
    assert len({b.data_ptr() // (2 * MIB) for b in blocks}) == 3
    assert all(b.data_ptr() % (2 * MIB) == 0 for b in blocks)
    del blocks, pool


def test_a_pool_may_have_an_allocator_of_its_own() -> None:
    path = mempool.cuda_library_path()
    stock = torch.cuda.memory.CUDAPluggableAllocator(path, "mempool_malloc", "mempool_free")
    pool = torch.cuda.MemPool(stock.allocator())
    with torch.cuda.use_mem_pool(pool):
        inside = torch.full((MIB,), 3, dtype=torch.uint8).cuda()
    assert int(inside.cpu().sum()) == 3 * MIB
    address = inside.data_ptr()
    del inside
    with torch.cuda.use_mem_pool(pool):
        again = torch.empty(MIB, dtype=torch.uint8, device="cuda")
    assert again.data_ptr() == address
    del again, pool


# ---- getCheckpointState, setCheckpointPoolState, checkPoolLiveAllocations


def live_in(pool: tuple[int, int]) -> dict[int, int]:
    segments = torch.cuda.memory_snapshot()
    return {
        b["address"]: b["size"]
        for s in segments
        if tuple(s["segment_pool_id"]) == pool
        for b in s["blocks"]
        if b["state"] == "active_allocated"
    }


def test_a_pool_comes_back_to_a_state() -> None:
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        kept = [torch.empty(n, dtype=torch.uint8, device="cuda") for n in (100, 70_000, 5 * MIB)]
    pool = graph.pool()
    state = torch._C._cuda_getCheckpointState(0, pool)
    before = live_in(pool)
    assert set(before) == {t.data_ptr() for t in kept}
    assert torch._C._cuda_checkPoolLiveAllocations(0, pool, set(before))
    # As cudagraph trees do: what is live at the checkpoint gets storages that own nothing yet.
    device = torch.device("cuda:0")
    fresh = [torch._C._construct_storage_from_data_pointer(t.data_ptr(), device, t.nbytes) for t in kept]
    more = torch.cuda.CUDAGraph()
    with torch.cuda.graph(more, pool=pool, stream=stream):
        later = [torch.empty(n, dtype=torch.uint8, device="cuda") for n in (100, 3 * MIB)]
    assert not torch._C._cuda_checkPoolLiveAllocations(0, pool, set(before))
    stale = [t.untyped_storage()._cdata for t in (*kept, *later)]  # whatever is live now is freed
    torch._C._cuda_setCheckpointPoolState(0, state, stale, [storage._cdata for storage in fresh])
    assert live_in(pool) == before
    assert torch._C._cuda_checkPoolLiveAllocations(0, pool, set(before))
    del later, kept
    assert live_in(pool) == before  # these own nothing any more
    del fresh
    assert live_in(pool) == {}
    del more, graph


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


# ---- shareIpcHandle, getIpcDevPtr


RECEIVER = """
import torch, mempool
mempool.enable("cuda")
torch.cuda.init()
storage = torch.UntypedStorage._new_shared_cuda(*{handle!r})
tensor = torch.empty(0, dtype=torch.uint8, device="cuda").set_(storage)
assert bool((tensor.cpu() == 7).all())
tensor.copy_(torch.full(tensor.shape, 9, dtype=torch.uint8))
torch.cuda.synchronize()
del tensor, storage  # tells the sender
"""


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_another_process_maps_the_same_memory(run_on_device: Any) -> None:
    """The stand-in has no events that processes share: the receiver is started when the sender's work is done."""
    filler = block(3)
    shared = torch.full((5 * MIB,), 7, dtype=torch.uint8).cuda()
    handle = shared.untyped_storage()._share_cuda_()
    assert handle[2] == shared.nbytes
    run_on_device(RECEIVER.format(handle=tuple(handle)))
    assert bool((shared.cpu() == 9).all())
    # What others have mapped stays where it is.
    address = shared.data_ptr()
    del filler
    mempool.defragment("cuda")
    torch.cuda.empty_cache()
    assert shared.data_ptr() == address
    assert bool((shared.cpu() == 9).all())


def test_memory_that_was_shared_goes_back_once_nobody_has_it(run_on_device: Any) -> None:
    gc.collect()
    torch.cuda.ipc_collect()
    torch.cuda.empty_cache()
    opened, held = descriptors(), torch.cuda.memory_reserved()
    shared = [torch.full((64 * MIB,), 7, dtype=torch.uint8).cuda() for _ in range(3)]
    handles = [each.untyped_storage()._share_cuda_() for each in shared]
    opened_once = descriptors()
    handles.append(shared[0].untyped_storage()._share_cuda_())
    assert handles[3][1] == handles[0][1]  # another receiver costs nothing
    assert descriptors() <= opened_once + 1  # torch's own file
    assert descriptors() > opened
    for i, handle in enumerate(handles):
        shared[i % 3].copy_(torch.full((64 * MIB,), 7, dtype=torch.uint8))  # a receiver writes
        run_on_device(RECEIVER.format(handle=tuple(handle)))
    del shared, handles
    gc.collect()
    torch.cuda.ipc_collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == held
    assert descriptors() <= opened + 1  # torch keeps its file of counters open


def test_a_pool_with_shared_memory_sleeps_once_that_is_gone(run_on_device: Any) -> None:
    pool = mempool.MemoryPool("weights", device="cuda", isolated=True)
    with mempool.use_pool(pool):
        kept = torch.full((5 * MIB,), 7, dtype=torch.uint8).cuda()
        shared = torch.full((5 * MIB,), 7, dtype=torch.uint8).cuda()
    handle = shared.untyped_storage()._share_cuda_()
    with pytest.raises(RuntimeError, match="shared with other processes"):
        pool.sleep()
    run_on_device(RECEIVER.format(handle=tuple(handle)))
    del shared
    gc.collect()
    torch.cuda.ipc_collect()
    pool.sleep()
    assert pool.total_bytes() == 0
    pool.wake()
    assert bool((kept.cpu() == 7).all())
    del kept
    pool.close()


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


# ---- graphs


def test_a_graph_replays_after_memory_was_moved() -> None:
    source, target = torch.zeros(MIB, device="cuda"), torch.zeros(MIB, device="cuda")
    filler = [block(4) for _ in range(12)]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scratch = torch.empty(MIB, device="cuda")
        scratch.copy_(source)
        target.copy_(scratch)
    address = scratch.data_ptr()
    del scratch  # the replay writes there all the same
    del filler[::2]
    report = mempool.defragment("cuda")
    assert report.moved_handles > 0
    torch.cuda.empty_cache()  # what is free in the graph's pool is not the cache's to give
    wide = block(24)
    source.copy_(torch.full((MIB,), 5.0))
    wide.fill_(1)
    graph.replay()
    torch.cuda.synchronize()
    assert bool((target.cpu() == 5).all())
    assert not wide.data_ptr() <= address < wide.data_ptr() + wide.nbytes
    del graph


def test_graphed_callables() -> None:
    layer = torch.nn.Linear(64, 64).cuda()
    sample = torch.randn(8, 64).cuda().requires_grad_()
    graphed: Any = torch.cuda.make_graphed_callables(layer, (sample,))
    assert graphed(torch.randn(8, 64).cuda().requires_grad_()).shape == (8, 64)


def test_an_allocation_during_a_capture_outside_of_its_pool() -> None:
    """On another stream, whose blocks the capture does not want."""
    graph = torch.cuda.CUDAGraph()
    other = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        inside = block(2)
        with torch.cuda.stream(other):
            outside = block(3)
    ids = {tuple(s["segment_pool_id"]) for s in torch.cuda.memory_snapshot()}
    assert graph.pool() in ids
    assert (0, 0) in ids
    assert inside.is_cuda
    assert outside.is_cuda
