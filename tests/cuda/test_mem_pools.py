"""torch.cuda.MemPool with mempool in place of torch's allocator: private pools and their states."""

from __future__ import annotations

import gc

import control
import pytest
import torch

import mempool

MIB = 1 << 20


pytestmark = pytest.mark.usefixtures("enabled")


def block(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8, device="cuda")


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
