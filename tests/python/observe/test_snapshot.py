"""Snapshots and their history, in the form that torch's viewer reads."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.cuda import _memory_viz

import mempool
from mempool.observe.history import find_peaks, place_of


def make_marked(count: int) -> torch.Tensor:
    return torch.ones(count)


def test_a_snapshot_is_what_torch_reads(enabled: None, tmp_path: Path) -> None:
    mempool.record_history(True)
    pool = mempool.MemoryPool("requests")
    with mempool.use_pool(pool):
        kept = make_marked(6 << 20)  # torch's summary leaves out what is below 20 MiB
    small = make_marked(10)
    gone = make_marked(1000)
    del gone
    snapshot = mempool.memory_snapshot()
    # torch's own reader: a summary by segment, the trace as text, and both HTML plots.
    assert "MiB allocated" in _memory_viz.segsum(snapshot)
    assert "# free completed" in _memory_viz.trace(snapshot)
    assert "<html" in _memory_viz.trace_plot(snapshot)
    assert "<html" in _memory_viz.segment_plot(snapshot)
    path = tmp_path / "snapshot.pickle"
    mempool.dump_snapshot(path)
    with open(path, "rb") as file:
        assert pickle.load(file)["segments"] == snapshot["segments"]
    assert mempool.load_snapshot(path)["device_traces"] == snapshot["device_traces"]
    del kept, small


def test_live_blocks_carry_the_stack_that_made_them(enabled: None) -> None:
    before = make_marked(777)
    mempool.record_history(True)
    kept = make_marked(5000)
    blocks = {b["address"]: b for s in mempool.memory_snapshot()["segments"] for b in s["blocks"]}
    block = blocks[kept.data_ptr()]
    assert block["state"] == "active_allocated"
    assert (block["size"], block["requested_size"]) == (20480, 20000)
    names = [frame["name"] for frame in block["frames"]]
    assert names[:2] == ["make_marked", "test_live_blocks_carry_the_stack_that_made_them"]
    assert block["frames"][0]["filename"] == __file__
    assert blocks[before.data_ptr()]["frames"] == []
    mempool.record_history(False)
    blocks = {b["address"]: b for s in mempool.memory_snapshot()["segments"] for b in s["blocks"]}
    assert blocks[kept.data_ptr()]["frames"] == []
    del kept, before


def test_the_numbers_of_a_snapshot_agree_with_the_statistics(enabled: None) -> None:
    kept = [torch.ones(n) for n in (3, 333, 33_333, 3_333_333)]
    snapshot = mempool.memory_snapshot()
    stats = mempool.memory_stats()
    segments = snapshot["segments"]
    assert sum(s["total_size"] for s in segments) == stats["reserved_bytes.all.current"]
    assert sum(s["allocated_size"] for s in segments) == stats["allocated_bytes.all.current"]
    assert sum(s["requested_size"] for s in segments) == stats["requested_bytes.all.current"]
    for segment in segments:
        assert sum(b["size"] for b in segment["blocks"]) == segment["total_size"]
    del kept


def test_events_are_bounded_and_in_order(enabled: None) -> None:
    mempool.record_history(True, max_events=10)
    for _ in range(50):
        make_marked(100)
    snapshot = mempool.memory_snapshot()
    trace = snapshot["device_traces"][0]
    assert [e["action"] for e in trace[-3:]] == ["alloc", "free_requested", "free_completed"]
    assert len({(e["addr"], e["time_us"], e["action"]) for e in trace}) <= 15
    assert snapshot["allocator_settings"]["events_dropped"] == 90
    times = [e["time_us"] for e in trace]
    assert times == sorted(times)
    with pytest.raises(mempool.ConfigError):
        mempool.record_history(True, max_events=-1)


def test_history_in_threads(enabled: None) -> None:
    from concurrent.futures import ThreadPoolExecutor

    mempool.record_history(True)
    with ThreadPoolExecutor(4) as executor:
        kept = list(executor.map(make_marked, [1000] * 64))
    blocks = {b["address"]: b for s in mempool.memory_snapshot()["segments"] for b in s["blocks"]}
    assert all(blocks[x.data_ptr()]["frames"][0]["name"] == "make_marked" for x in kept)
    del kept


def test_arenas_of_one_name_are_told_apart(enabled: None) -> None:
    pools = [mempool.MemoryPool("default", isolated=True) for _ in range(2)]
    kept = [torch.ones(10)]
    for pool in pools:
        with mempool.use_pool(pool):
            kept.append(torch.ones(10))
    ids = {b["address"]: s["segment_pool_id"] for s in mempool.memory_snapshot()["segments"] for b in s["blocks"]}
    assert len({ids[x.data_ptr()] for x in kept}) == 3
    del kept


def test_stacks_of_an_earlier_recording_are_forgotten(enabled: None) -> None:
    mempool.record_history(True)
    kept = make_marked(100)
    mempool.record_history(True)
    blocks = {b["address"]: b for s in mempool.memory_snapshot()["segments"] for b in s["blocks"]}
    assert blocks[kept.data_ptr()]["frames"] == []
    with pytest.raises(mempool.ConfigError):
        mempool.record_history(True, max_events=1.5)  # type: ignore[arg-type]
    del kept


def frame(filename: str, line: int = 0, name: str = "f") -> dict[str, object]:
    return {"filename": filename, "line": line, "name": name}


def snapshot_of(**block: object) -> dict[str, object]:
    """As torch writes it, with one block."""
    known = {"size": 4, "state": "active_allocated", "frames": [], "address": 4096}
    return {"segments": [{"total_size": 8, "blocks": [known | block]}], "device_traces": []}


PYTHON = [frame("/a/site-packages/torch/nn/functional.py", 5, "linear"), frame("/a/train.py", 12, "step")]
UNWINDER = [frame("??", 0, "torch::unwind::unwind()"), frame("/b/CUDACachingAllocator.cpp", 9, "malloc")]


@pytest.mark.parametrize(
    ("frames", "place"),
    [
        (UNWINDER + PYTHON, "/a/train.py:12 step"),
        ([*UNWINDER, frame("", 0, "_PyEval_EvalFrameDefault"), *PYTHON], "/a/train.py:12 step"),
        (UNWINDER + PYTHON[:1], "/a/site-packages/torch/nn/functional.py:5 linear"),
        ([*UNWINDER, frame("<stdin>", 1, "<module>")], "<stdin>:1 <module>"),
        ([*UNWINDER, frame("/usr/bin/tool", 7, "main")], "/usr/bin/tool:7 main"),
        (UNWINDER, "??:0 torch::unwind::unwind()"),
        ([], None),
        (None, None),
    ],
)
def test_bytes_are_counted_where_python_asked_for_them(frames: Any, place: str | None) -> None:
    assert place_of(frames) == place


def event(action: str, address: int, size: int, name: str = "f") -> dict[str, object]:
    return {"action": action, "addr": address, "size": size, "frames": [frame("main.py", address, name)]}


def test_the_peak_is_found_backwards_from_the_end() -> None:
    events = [
        event("free_completed", 1, 100, "freed"),  # made before the first event that was kept
        event("alloc", 2, 10),
        event("alloc", 3, 30, "peak"),
        event("free_requested", 3, 30),
        event("free_completed", 3, 30),
        event("alloc", 3, 5, "later"),
        event("segment_alloc", 9, 1000),
        event("free_completed", 3, 5),
    ]
    snapshot: dict[str, Any] = snapshot_of(address=2, size=10)
    (peak,) = find_peaks(snapshot | {"device_traces": [events], "allocator_settings": {"events_dropped": 7}})
    assert (peak.nbytes, peak.dropped) == (100, 7)
    assert [(b["size"], b["frames"]) for b in peak.blocks] == [(100, [])]
    (peak,) = find_peaks(snapshot | {"device_traces": [events[1:]]})
    assert (peak.nbytes, peak.dropped) == (40, 0)
    assert sorted((b["size"], b["frames"][0]["name"]) for b in peak.blocks) == [(10, "f"), (30, "peak")]
    assert find_peaks(snapshot) == []


_LONG = 10**5000  # Python makes no text of it


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2, 3]),
        pickle.dumps({"segments": 7}),
        pickle.dumps({"segments": [{"blocks": None}]}),
        pickle.dumps({"segments": [{"blocks": [], "total_size": "4"}]}),
        pickle.dumps({"segments": [{"blocks": [{"size": 3}], "total_size": 4}]}),
        pickle.dumps({"segments": []})[:-3],
        pickle.dumps(snapshot_of(size=-4)),
        pickle.dumps(snapshot_of(size=True)),
        pickle.dumps(snapshot_of(size=1 << 64)),
        pickle.dumps(snapshot_of(state=None)),
        pickle.dumps(snapshot_of(frames="main.py")),
        pickle.dumps(snapshot_of(frames=[None])),
        pickle.dumps(snapshot_of(frames=[{"filename": "main.py", "line": 3}])),
        pickle.dumps(snapshot_of(frames=[{"filename": b"main.py", "line": 3, "name": "f"}])),
        pickle.dumps(snapshot_of(frames=[{"filename": "main.py", "line": None, "name": "f"}])),
        pickle.dumps(snapshot_of() | {"segments": [{"blocks": [], "total_size": -1}]}),
        pickle.dumps(snapshot_of() | {"segments": [{"blocks": [], "total_size": 1 << 62}] * 3}),
        pickle.dumps(snapshot_of() | {"device_traces": [3]}),
        pickle.dumps(snapshot_of() | {"device_traces": [[{"action": "alloc", "size": 3}]]}),
        pickle.dumps(snapshot_of() | {"device_traces": [[{"action": "alloc", "addr": 1, "size": -3}]]}),
        pickle.dumps(snapshot_of() | {"device_traces": [["alloc"]]}),
        *(
            pickle.dumps(snapshot_of() | {"segments": [{"blocks": [], "total_size": 4} | changed]})
            for changed in ({"address": "0x10"}, {"address": _LONG}, {"total_size": _LONG})
        ),
        *(
            pickle.dumps(snapshot_of(**changed))
            for changed in (
                {"address": []},
                {"address": "1"},
                {"address": _LONG},
                {"size": _LONG},
                {"pool": _LONG},
                {"pool": [1]},
                {"frames": [{"filename": "main.py", "line": _LONG, "name": "f"}]},
            )
        ),
        pickle.dumps(snapshot_of() | {"allocator_settings": {"events_dropped": _LONG}}),
        pickle.dumps(snapshot_of() | {"device_traces": [[{"action": "alloc", "addr": _LONG, "size": 3}]]}),
        pickle.dumps({"segments": snapshot_of(size=1 << 62)["segments"] * 5}),  # type: ignore[operator]
        pickle.dumps(
            snapshot_of()
            | {"device_traces": [[{"action": "free_completed", "addr": at, "size": 1 << 61} for at in range(9)]]}
        ),
        pickle.dumps(_Payload()),
    ],
)
def test_a_corrupt_snapshot_is_refused_and_runs_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pickle"
    path.write_bytes(content)
    with pytest.raises(mempool.SnapshotError, match=r"bad\.pickle is not a memory snapshot"):
        mempool.load_snapshot(path)
