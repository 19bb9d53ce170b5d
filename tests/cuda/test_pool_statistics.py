"""What private pools hold, as torch's native allocator counts it; and requests that no device could serve."""

from __future__ import annotations

import gc

import pytest
import torch
from torch_release import COUNTS_PRIVATE_POOLS

import mempool

MIB = 1 << 20

pytestmark = pytest.mark.usefixtures("enabled")


def block(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8, device="cuda")


def figures(pool_id: tuple[int, int], of: str = "all") -> list[int]:
    stats = torch.cuda.memory_stats()
    name = f"reserved_bytes_by_private_pools.{pool_id[0]}_{pool_id[1]}.{of}"
    return [stats[f"{name}.{figure}"] for figure in ("current", "peak", "allocated", "freed")]


@COUNTS_PRIVATE_POOLS
def test_a_private_pool_has_a_true_peak_and_sums() -> None:
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        kept = [block(30), block(50), torch.empty(100, dtype=torch.uint8, device="cuda")]
    most = figures(pool.id)[0]
    assert 80 * MIB < most <= 96 * MIB
    assert figures(pool.id) == [most, most, most, 0]
    small, large = figures(pool.id, "small_pool")[0], figures(pool.id, "large_pool")[0]
    assert small + large == most
    assert 0 < small <= 20 * MIB
    del kept
    torch.cuda.empty_cache()  # a pool keeps its memory as long as it is there
    assert figures(pool.id) == [most, most, most, 0]
    pool_id = pool.id
    del pool
    gc.collect()
    assert figures(pool_id) == [0, most, most, most]
    torch.cuda.reset_peak_memory_stats()
    assert figures(pool_id) == [0, 0, most, most]
    torch.cuda.reset_accumulated_memory_stats()
    assert figures(pool_id) == [0, 0, 0, 0]
    assert figures(pool_id, "small_pool") == figures(pool_id, "large_pool") == [0, 0, 0, 0]


@COUNTS_PRIVATE_POOLS
def test_memory_of_a_pool_that_is_gone_goes_back_to_the_device() -> None:
    held = torch.cuda.memory_reserved()
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        kept = block(40)
    pool_id = pool.id
    del kept, pool
    gc.collect()
    assert torch.cuda.memory_reserved() == held
    assert figures(pool_id)[0] == 0


@COUNTS_PRIVATE_POOLS
def test_a_pool_with_a_live_block_keeps_it_when_it_goes() -> None:
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        kept, dropped = block(40), block(60)
    pool_id = pool.id
    del dropped, pool
    gc.collect()
    held = figures(pool_id)[0]
    assert 40 * MIB <= held < 60 * MIB
    kept.fill_(1)
    del kept
    torch.cuda.empty_cache()
    assert figures(pool_id)[0] == 0


@COUNTS_PRIVATE_POOLS
def test_a_graph_s_pool_reaches_its_peak_while_it_is_captured() -> None:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        first = block(20)
        del first
        second = block(24)
    pool_id = graph.pool()
    current, peak, allocated, freed = figures(pool_id)
    assert current == peak == allocated >= 24 * MIB
    assert freed == 0
    assert second.is_cuda
    graph.reset()
    del second, graph
    gc.collect()
    torch.cuda.empty_cache()
    assert figures(pool_id) == [0, peak, peak, peak]


def test_more_than_an_exabyte_is_said_in_words() -> None:
    for nbytes in (1 << 60, 1 << 61, (1 << 63) - 1):
        with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate more than 1EB memory") as caught:
            torch.empty(nbytes, dtype=torch.uint8, device="cuda")
        text = str(caught.value)
        assert text.startswith("CUDA out of memory. Tried to allocate more than 1EB memory. GPU 0 has a total capacity")
        info = mempool.oom_info(caught.value)
        assert info is not None
        assert info["requested"] == nbytes
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 1073741824\.00 GiB"):
        torch.empty((1 << 60) - 1, dtype=torch.uint8, device="cuda")
