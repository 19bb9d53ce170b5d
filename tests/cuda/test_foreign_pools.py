"""Pools of torch.cuda.MemPool with an allocator of their own, as NCCL's have: the same core serves them."""

from __future__ import annotations

import ctypes
import gc
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import control
import pytest
import torch
from torch_release import COUNTS_PRIVATE_POOLS, TELLS_POOLS

import mempool

MIB = 1 << 20
GIVES, RETURNS_NOTHING, THROWS, THROWS_A_NUMBER, REPEATS = range(5)
Hook = ctypes.CFUNCTYPE(None)

pytestmark = pytest.mark.usefixtures("enabled")


class Source:
    """The functions of source.cpp, and pools over them."""

    def __init__(self, library: Path) -> None:
        self.path = str(library)
        self.functions = ctypes.CDLL(self.path)
        self.functions.held.restype = ctypes.c_size_t
        self.functions.last_stream.restype = ctypes.c_void_p
        self.functions.set_offset.argtypes = [ctypes.c_size_t]

    def pool(self, **options: Any) -> torch.cuda.MemPool:
        stock = torch.cuda.memory.CUDAPluggableAllocator(self.path, "source_malloc", "source_free")
        return torch.cuda.MemPool(stock.allocator(), **options)

    @property
    def calls(self) -> int:
        return int(self.functions.calls())

    @property
    def held(self) -> int:
        return int(self.functions.held())


@pytest.fixture(scope="session")
def library(compiled: Callable[[str], Path]) -> Path:
    return compiled("source.cpp")


@pytest.fixture
def source(library: Path) -> Iterator[Source]:
    """Nothing of it is held before and after."""
    made = Source(library)
    assert made.held == 0
    yield made
    made.functions.set_mode(GIVES)
    made.functions.set_hook(Hook())
    gc.collect()
    torch.cuda.empty_cache()
    assert made.held == 0
    made.functions.set_offset(0)


def block(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8, device="cuda")


def stat(name: str) -> int:
    return int(torch.cuda.memory_stats()[name])


def test_many_sizes_share_a_segment(source: Source) -> None:
    pool, before, choose = source.pool(), source.calls, random.Random(3)
    with torch.cuda.use_mem_pool(pool):
        for _ in range(200):
            block(choose.randint(4 * MIB, 8 * MIB))
        small = [block(64) for _ in range(100)]
    assert (source.calls - before, source.held) == (1, 20 * MIB)
    assert len({tensor.data_ptr() for tensor in small}) == 100
    contents = torch.arange(250, dtype=torch.uint8)
    with torch.cuda.use_mem_pool(pool):
        inside = contents.cuda()
    assert torch.equal(inside.cpu(), contents)


@COUNTS_PRIVATE_POOLS
def test_statistics_and_snapshot_show_it(source: Source) -> None:
    base = {name: stat(f"{name}.all.current") for name in ("allocated_bytes", "active_bytes", "reserved_bytes")}
    pool = source.pool()
    with torch.cuda.use_mem_pool(pool):
        kept = block(30 * MIB)
    for name, value in base.items():
        assert stat(f"{name}.all.current") == value + 30 * MIB, name
    (segment,) = pool.snapshot()
    assert segment["total_size"] == segment["allocated_size"] == 30 * MIB
    assert not segment["is_expandable"]
    assert tuple(segment["segment_pool_id"]) == pool.id
    assert mempool.memory_reserved("cuda") == torch.cuda.memory_reserved()
    of_pool = f"reserved_bytes_by_private_pools.{pool.id[0]}_{pool.id[1]}.all"
    assert [stat(f"{of_pool}.{figure}") for figure in ("current", "peak", "freed")] == [30 * MIB, 30 * MIB, 0]
    del kept, pool
    gc.collect()
    assert [stat(f"{of_pool}.{figure}") for figure in ("current", "peak", "freed")] == [0, 30 * MIB, 30 * MIB]


def test_its_memory_and_the_devices_go_back_for_it(source: Source, standin: control.Standin) -> None:
    standin.set_capacity(2 << 30)
    pool, choose = source.pool(), random.Random(4)
    with torch.cuda.use_mem_pool(pool):
        for _ in range(80):
            block(choose.randint(80 * MIB, 100 * MIB))
    block(1400 * MIB)  # the device's own cache
    with torch.cuda.use_mem_pool(pool):
        for gib in (0.9, 1.7):
            assert block(int(gib * (1 << 30))).data_ptr() != 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        block(1400 * MIB)  # its memory is given back for no other pool's sake
    torch.zeros(1, device="cuda")  # an error of the source's calls is not left for the next launch


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (RETURNS_NOTHING, "gave none. Free"),
        (THROWS, "gave none: the network's window is full. Free"),
        (THROWS_A_NUMBER, "gave none: it threw"),
    ],
)
def test_a_source_that_gives_nothing_is_an_out_of_memory_error(source: Source, mode: int, words: str) -> None:
    pool = source.pool()
    with torch.cuda.use_mem_pool(pool):
        kept = block(3 * MIB)
    ooms, held = stat("num_ooms"), source.held
    source.functions.set_mode(mode)
    with torch.cuda.use_mem_pool(pool):
        with pytest.raises(torch.cuda.OutOfMemoryError, match=words):
            block(100 * MIB)
        with pytest.raises(torch.cuda.OutOfMemoryError, match=words):
            block(1 << 45)
        more = block(3 * MIB)  # there is room in the segment
    assert (stat("num_ooms"), source.held) == (ooms + 2, held)
    source.functions.set_mode(GIVES)
    with torch.cuda.use_mem_pool(pool):
        assert block(100 * MIB).data_ptr() != 0
    del kept, more


def test_the_memory_fraction_holds(source: Source) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    pool = source.pool()
    torch.cuda.set_per_process_memory_fraction(100 * MIB / total)
    try:
        with torch.cuda.use_mem_pool(pool):
            kept = block(80 * MIB)
            with pytest.raises(torch.cuda.OutOfMemoryError, match="device limit 100"):
                block(30 * MIB)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    del kept


def test_it_lends_itself_when_memory_is_short(source: Source, standin: control.Standin) -> None:
    pool = source.pool(use_on_oom=True)
    with torch.cuda.use_mem_pool(pool):
        address = block(64 * MIB).data_ptr()
    standin.set_capacity(standin.used() + 4 * MIB)
    torch.cuda.memory._record_memory_history()
    ooms = stat("num_ooms")
    borrowed = block(60 * MIB)
    assert address <= borrowed.data_ptr() < address + 64 * MIB
    borrowed_at = borrowed.data_ptr()
    del borrowed
    entries = [e for e in torch.cuda.memory._snapshot()["device_traces"][0] if e["addr"] == borrowed_at]
    torch.cuda.memory._record_memory_history(None)
    assert [(e["action"], e["size"]) for e in entries] == [
        (action, 60 * MIB) for action in ("alloc", "free_requested", "free_completed")
    ]
    assert stat("num_ooms") == ooms
    with pytest.raises(torch.cuda.OutOfMemoryError):
        block(65 * MIB)


@TELLS_POOLS
def test_listeners_hear_of_segments_before_they_end(source: Source, calls: ctypes.CDLL) -> None:
    pool = source.pool()
    torch.cuda.memory._record_memory_history()
    with torch.cuda.use_mem_pool(pool):
        block(30 * MIB)
    id_of_pool = pool.id
    del pool
    gc.collect()
    traces = torch.cuda.memory._snapshot()["device_traces"][0]
    torch.cuda.memory._record_memory_history(None)
    segments = [e for e in traces if e["action"].startswith("segment_") and tuple(e["pool_id"]) == id_of_pool]
    assert [(e["action"], e["size"]) for e in segments] == [("segment_alloc", 30 * MIB), ("segment_free", 30 * MIB)]
    assert source.held == 0


def test_blocks_outlive_the_pool_and_streams_are_waited_for(source: Source, standin: control.Standin) -> None:
    side = torch.cuda.Stream()
    pool = source.pool()
    with torch.cuda.use_mem_pool(pool):
        kept = block(30 * MIB)
    address = kept.data_ptr()
    del pool
    gc.collect()
    assert source.held == 30 * MIB
    with standin.held(side):
        standin.write_later(side, address, 30 * MIB, seed=5)
        standin.check_later(side, address, 30 * MIB, seed=5)
        kept.record_stream(side)
        del kept
        assert source.held == 30 * MIB
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert source.held == 0


def test_each_stream_asks_for_memory_of_its_own(source: Source) -> None:
    pool, side = source.pool(), torch.cuda.Stream()
    with torch.cuda.use_mem_pool(pool):
        block(3 * MIB)
        assert (source.functions.last_device(), source.functions.last_stream()) == (0, None)
        with torch.cuda.stream(side):
            block(3 * MIB)
        assert source.functions.last_stream() == side.cuda_stream
    if torch.cuda.device_count() > 1:
        with torch.cuda.device(1):
            there = source.pool()
            with torch.cuda.use_mem_pool(there):
                kept = block(30 * MIB)
            assert source.functions.last_device() == kept.device.index == 1
            del kept, there


def test_what_a_graph_writes_to_is_not_given_back(source: Source, standin: control.Standin) -> None:
    pool, graph = source.pool(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool.id):
        block(64 * MIB)
    assert source.held == 64 * MIB
    standin.set_capacity(standin.used() + 50 * MIB)
    with torch.cuda.use_mem_pool(pool), pytest.raises(torch.cuda.OutOfMemoryError):
        block(100 * MIB)
    assert source.held == 64 * MIB
    del graph, pool


def test_a_source_may_align_to_less_than_a_segment(source: Source) -> None:
    source.functions.set_offset(512)
    pool = source.pool()
    with torch.cuda.use_mem_pool(pool):
        kept = [block(30 * MIB), block(5 * MIB)]
    for seed, tensor in enumerate(kept):
        tensor.copy_(torch.full((len(tensor),), seed + 1, dtype=torch.uint8))
    assert [int(tensor.cpu().to(torch.int64).sum()) for tensor in kept] == [30 * MIB, 2 * 5 * MIB]
    assert torch.cuda.memory_reserved() >= 50 * MIB
    del kept, tensor


@pytest.mark.parametrize("address", ["same", "free"])
def test_a_source_that_gives_its_memory_twice_is_refused(source: Source, address: str) -> None:
    pool = source.pool()
    with torch.cuda.use_mem_pool(pool):
        kept = [block(4 * MIB), block(4 * MIB)]  # share a segment
        if address == "free":
            del kept[0]
        source.functions.set_mode(REPEATS)
        with pytest.raises(torch.cuda.OutOfMemoryError, match="it has given already"):
            block(40 * MIB)
        source.functions.set_mode(GIVES)
        fresh = [block(40 * MIB), block(8 * MIB)]
    starts = sorted((t.data_ptr(), t.nbytes) for t in (*kept, *fresh))
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(starts))
    del kept, fresh


def test_a_source_may_free_and_empty_the_cache_and_is_refused_the_rest(source: Source) -> None:
    pool, errors = source.pool(), []
    with torch.cuda.use_mem_pool(pool):
        kept = [block(3 * MIB)]
    kept.append(block(5 * MIB))

    def ask_torch() -> None:
        kept.clear()
        torch.cuda.empty_cache()
        for ask in (torch.cuda.memory_stats, torch.cuda.memory_snapshot, lambda: block(MIB)):
            try:
                ask()
            except RuntimeError as error:
                errors.append("allocator of a torch.cuda.MemPool asks" in str(error))

    hook = Hook(ask_torch)
    source.functions.set_hook(hook)
    allocated = stat("allocated_bytes.all.current")
    with torch.cuda.use_mem_pool(pool):
        more = block(50 * MIB)
    assert errors == [True, True, True]
    assert stat("allocated_bytes.all.current") == allocated + 50 * MIB - 8 * MIB
    del more, pool
    gc.collect()
    assert errors == [True] * 3 * (len(errors) // 3)
    assert len(errors) > 3
    assert source.held == 0


def test_memory_of_such_a_pool_is_not_shared_with_processes(source: Source) -> None:
    pool = source.pool()
    with torch.cuda.use_mem_pool(pool):
        kept = block(30 * MIB)
    with pytest.raises(RuntimeError, match=r"comes from the allocator of a torch\.cuda\.MemPool"):
        kept.untyped_storage()._share_cuda_()
    del kept
