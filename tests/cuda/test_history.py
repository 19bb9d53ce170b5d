"""Every history hears of the same blocks: torch's, mempool's, and a recorded trace; each device by itself."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import control
import pytest
import torch
from torch_release import PLACES_BLOCKS, TORCH

import mempool

MIB = 1 << 20

pytestmark = pytest.mark.usefixtures("enabled")


def block(mib: int, device: str = "cuda") -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8, device=device)


@pytest.fixture
def torch_history(enabled: None) -> Iterator[None]:
    torch.cuda.memory._record_memory_history(max_entries=1000)
    yield
    torch.cuda.memory._record_memory_history(enabled=None)


def events_of(traces: list[dict[str, Any]], address: int) -> list[tuple[str, int, int]]:
    """Those of blocks: memory may have been mapped at the same address."""
    at = [e for e in traces if e["addr"] == address and not e["action"].startswith("segment")]
    return [(e["action"], e["size"], e["stream"]) for e in at]


@contextlib.contextmanager
def block_that_waits(standin: control.Standin) -> Iterator[int]:
    """The address of a freed block of 4 MiB that another stream uses, which has caught up at the end."""
    side = torch.cuda.Stream()
    kept = block(4)
    address = kept.data_ptr()
    with standin.held(side):
        standin.write_later(side, address, MIB, seed=3)
        kept.record_stream(side)
        del kept
        yield address
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("torch_history")
def test_blocks_of_a_restored_pool_are_in_the_history() -> None:
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        kept = [torch.empty(n, dtype=torch.uint8, device="cuda") for n in (100, 5 * MIB)]
    pool = graph.pool()
    state = torch._C._cuda_getCheckpointState(0, pool)
    device = torch.device("cuda:0")
    fresh = [torch._C._construct_storage_from_data_pointer(t.data_ptr(), device, t.nbytes) for t in kept]
    addresses = [t.data_ptr() for t in kept]
    stale = [t.untyped_storage()._cdata for t in kept]
    torch._C._cuda_setCheckpointPoolState(0, state, stale, [storage._cdata for storage in fresh])
    del kept
    traces = torch.cuda.memory._snapshot()["device_traces"][0]
    for address, size in zip(addresses, (128, 5 * MIB), strict=True):
        assert events_of(traces, address) == [
            (action, size, stream.cuda_stream) for action in ("alloc", "free_requested", "free_completed", "alloc")
        ]
    del fresh
    after = torch.cuda.memory._snapshot()["device_traces"][0]
    for address in addresses:
        actions = [action for action, _, _ in events_of(after, address)]
        assert actions[4:] == ["free_requested", "free_completed"]
    del graph


@PLACES_BLOCKS
def test_a_block_at_a_given_address_is_in_every_history(calls: ctypes.CDLL, tmp_path: Path) -> None:
    warm = block(8)
    address = warm.data_ptr()
    del warm
    mempool.record_history(True, "cuda:0")
    torch.cuda.memory._record_memory_history(max_entries=1000)
    try:
        with mempool.record_trace(tmp_path / "trace.csv", "cuda:0"):
            assert calls.allocate_with_address(4 * MIB, address) == 1
            live = torch.cuda.memory._snapshot()
            calls.free_kept()
        ours = mempool.memory_snapshot("cuda:0")["device_traces"][0]
        theirs = torch.cuda.memory._snapshot()["device_traces"][0]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
        mempool.record_history(False, "cuda:0")
    expected = [(action, 4 * MIB, 0) for action in ("alloc", "free_requested", "free_completed")]
    assert events_of(ours, address) == expected
    assert events_of(theirs, address) == expected
    found = {b["address"]: b for s in live["segments"] for b in s["blocks"]}[address]
    assert any("test_history" in frame["filename"] for frame in found["frames"])
    with (tmp_path / "trace.csv").open(newline="") as file:
        rows = [(row["op"], row["bytes"]) for row in csv.DictReader(file)]
    assert rows == [("alloc", str(4 * MIB)), ("free", "")]


@pytest.mark.usefixtures("torch_history")
def test_entries_have_the_time_of_their_moment() -> None:
    before = time.time() * 1e6
    kept = block(2)
    between = time.time() * 1e6
    del kept
    entries = [e for trace in torch.cuda.memory._snapshot()["device_traces"] for e in trace]
    after = time.time() * 1e6
    times = {action: [e["time_us"] for e in entries if e["action"] == action] for action in ("alloc", "free_requested")}
    slack = 10_000  # torch measures its clock against the time of day
    assert times["alloc"] != []
    assert all(before - slack <= t <= between + slack for t in times["alloc"])
    assert times["free_requested"] != []
    assert all(between - slack <= t <= after + slack for t in times["free_requested"])


@pytest.mark.usefixtures("torch_history")
def test_a_block_that_waits_for_a_stream_completes_later(standin: control.Standin) -> None:
    with block_that_waits(standin) as address:
        waiting = torch.cuda.memory._snapshot()["device_traces"][0]
        assert [action for action, _, _ in events_of(waiting, address)] == ["alloc", "free_requested"]
    done = torch.cuda.memory._snapshot()["device_traces"][0]
    assert [action for action, _, _ in events_of(done, address)] == ["alloc", "free_requested", "free_completed"]
    (completed,) = (e for e in done if e["action"] == "free_completed" and e["addr"] == address)
    assert any("test_history" in frame["filename"] for frame in completed["frames"])


def test_mempools_own_history_has_the_moment_when_a_stream_has_caught_up(standin: control.Standin) -> None:
    mempool.record_history(True, "cuda:0")
    try:
        with block_that_waits(standin) as address:
            waiting = mempool.memory_snapshot("cuda:0")
        done = mempool.memory_snapshot("cuda:0")
    finally:
        mempool.record_history(False, "cuda:0")
    states = {b["address"]: b["state"] for s in waiting["segments"] for b in s["blocks"]}
    assert states[address] == "active_pending_free"
    expected = [(action, 4 * MIB, 0) for action in ("alloc", "free_requested", "free_completed")]
    assert events_of(waiting["device_traces"][0], address) == expected[:2]
    assert events_of(done["device_traces"][0], address) == expected


def test_the_most_entries_are_those_of_a_device() -> None:
    torch.cuda.memory._record_memory_history(max_entries=10)
    try:
        kept = block(3, "cuda:0")
        for _ in range(20):
            block(3, "cuda:1")
        first, second = torch.cuda.memory._snapshot()["device_traces"]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    assert ("alloc", 3 * MIB, 0) in events_of(first, kept.data_ptr())
    assert len(second) == 10


@pytest.mark.usefixtures("torch_history")
def test_a_snapshot_is_an_entry_of_the_next_one_with_the_bytes_in_use() -> None:
    kept = block(3)
    active = torch.cuda.memory_stats()["active_bytes.all.current"]
    traces = [torch.cuda.memory._snapshot()["device_traces"][0] for _ in range(2)]
    entries = [[(e["action"], e["size"]) for e in trace if e["action"] == "snapshot"] for trace in traces]
    assert entries == [[], [("snapshot", active)]]
    del kept


@pytest.mark.usefixtures("torch_history")
def test_blocks_keep_the_id_of_a_pool_that_is_gone() -> None:
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        kept = block(3)
    address, pool_id = kept.data_ptr(), pool.id
    del pool
    gc.collect()
    (segment,) = (s for s in torch.cuda.memory_snapshot() if s["address"] <= address < s["address"] + s["total_size"])
    assert tuple(segment["segment_pool_id"]) == pool_id
    del kept
    trace = torch.cuda.memory._snapshot()["device_traces"][0]
    if TORCH < (2, 13):  # its entries have no pool
        return
    ids = [tuple(e["pool_id"]) for e in trace if e["addr"] == address and not e["action"].startswith("segment")]
    assert ids == [pool_id] * 3


def test_a_number_of_events_that_no_history_holds_changes_nothing() -> None:
    mempool.record_history(True, "cuda:0")
    try:
        kept = block(3)
        with pytest.raises(mempool.ConfigError, match="63 bits"):
            mempool.record_history(True, "cuda:0", max_events=1 << 63)
        assert any("test_history" in frame["filename"] for frame in frames_of(kept))
    finally:
        mempool.record_history(False, "cuda:0")


@pytest.mark.usefixtures("torch_history")
def test_blocks_that_torch_does_not_ask_for_are_heard_of_too() -> None:
    """All blocks of the device are in one history, whoever asks for them."""
    stock = ctypes.CDLL(mempool.cuda_library_path())
    stock.mempool_malloc.restype = ctypes.c_void_p
    stock.mempool_malloc.argtypes = [ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
    stock.mempool_free.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
    address = stock.mempool_malloc(3 * MIB, 0, None)
    stock.mempool_free(address, 3 * MIB, 0, None)
    traces = torch.cuda.memory._snapshot()["device_traces"][0]
    assert [action for action, _, _ in events_of(traces, address)] == ["alloc", "free_requested", "free_completed"]


def test_stacks_are_kept_until_the_last_device_stops() -> None:
    mempool.record_history(True, "cuda:0")
    mempool.record_history(True, "cuda:1")
    kept = block(3, "cuda:0")
    try:
        mempool.record_history(False, "cuda:1")
        assert any("test_history" in frame["filename"] for frame in frames_of(kept))
        mempool.record_history(True, "cuda:1")  # nor does another one that starts forget them
        assert any("test_history" in frame["filename"] for frame in frames_of(kept))
        again = block(2, "cuda:0")
        assert any("test_history" in frame["filename"] for frame in frames_of(again))
    finally:
        mempool.record_history(False, "cuda:0")
        mempool.record_history(False, "cuda:1")
    assert frames_of(kept) == []


def frames_of(tensor: torch.Tensor) -> list[dict[str, Any]]:
    snapshot = mempool.memory_snapshot(str(tensor.device))
    blocks = {b["address"]: b for s in snapshot["segments"] for b in s["blocks"]}
    frames: list[dict[str, Any]] = blocks[tensor.data_ptr()]["frames"]
    return frames


def test_events_are_those_of_their_device_and_stream() -> None:
    mempool.record_history(True, "cuda:1")
    try:
        stream = torch.cuda.Stream("cuda:1")
        with torch.cuda.stream(stream):
            kept = block(3, "cuda:1")
        address = kept.data_ptr()
        del kept
        snapshot = mempool.memory_snapshot("cuda:1")
    finally:
        mempool.record_history(False, "cuda:1")
    assert snapshot["device_traces"][0] == []
    assert len(snapshot["device_traces"]) == 2
    assert {segment["device"] for segment in snapshot["segments"]} == {1}
    assert events_of(snapshot["device_traces"][1], address) == [
        (action, 3 * MIB, stream.cuda_stream) for action in ("alloc", "free_requested", "free_completed")
    ]


def test_both_snapshots_say_the_same_of_each_segment() -> None:
    kept = [torch.empty(n, dtype=torch.uint8, device="cuda") for n in (100, 300_000, 7 * MIB)]
    ours = {s["address"]: s for s in mempool.memory_snapshot("cuda:0")["segments"]}
    theirs = {s["address"]: s for s in torch.cuda.memory_snapshot() if s["device"] == 0}
    assert ours.keys() == theirs.keys() != set()
    for address, segment in ours.items():
        for key in ("total_size", "allocated_size", "active_size", "requested_size", "segment_type", "stream"):
            assert segment[key] == theirs[address][key], key
    assert sum(s["requested_size"] for s in ours.values()) >= sum(t.nbytes for t in kept)
