"""``record_trace`` writes what an allocator was asked for, or fails without a trace."""

from __future__ import annotations

import csv
import errno
import gzip
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mempool

MIB = 1 << 20


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_recording_has_every_block_and_replays(enabled: None, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    before = torch.ones(MIB)
    with mempool.record_trace(path) as recording:
        kept = torch.ones(3 * MIB)
        recording.step()
        del before  # older than the recording: left out
        for _ in range(3):
            torch.ones(1000)
        recording.step()
    events = rows(path)
    assert recording.events == len(events)
    assert [e["op"] for e in events if e["op"] == "step"] == ["step", "step"]
    allocs = [int(e["bytes"]) for e in events if e["op"] == "alloc"]
    assert allocs.count(3 * MIB * 4) == 1
    assert allocs.count(4000) == 3
    times = [int(e["time_ns"]) for e in events]
    assert times == sorted(times)
    assert times[0] >= 0
    report = mempool.replay(path)
    assert report.end_live_bytes == 3 * MIB * 4
    assert report.timeline[-1][1] == report.end_live_bytes
    assert report.timeline[-1][2] >= report.end_live_bytes
    assert kept.sum() == 3 * MIB


def test_a_packed_recording_of_threads_and_pools(enabled: None, tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    pool = mempool.MemoryPool("p")

    def work() -> None:
        with mempool.use_pool(pool):
            torch.ones(5000)

    with mempool.record_trace(path):
        torch.ones(100)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    with gzip.open(path, "rt", newline="") as file:
        events = list(csv.DictReader(file))
    small = next(e for e in events if e["bytes"] == "400")
    pooled = next(e for e in events if e["bytes"] == "20000")
    assert small["pool"] == "0"
    assert pooled["pool"] != "0"
    assert small["thread"] != pooled["thread"]
    assert mempool.replay(path).events == len(events)
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv.gz"]


def test_memory_decays_in_the_time_of_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "op,id,bytes,time_ns\nalloc,0,104857600,0\nalloc,1,1000,5\nfree,0,,10\nalloc,2,1000,20000000000\nfree,2,,30000000000\n"
    )
    assert mempool.replay(path).decommits > 0
    assert mempool.replay(path, conf="decay_ms:never").decommits == 0
    assert mempool.replay(path, conf="decay_ms:60000").decommits == 0


def test_one_recording_at_a_time(enabled: None, tmp_path: Path) -> None:
    with mempool.record_trace(tmp_path / "a.csv"):
        busy = r"a trace of cpu is being recorded already, to '.*a\.csv'"
        with pytest.raises(OSError, match=busy) as caught, mempool.record_trace(tmp_path / "b.csv"):
            pass
        assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, str(tmp_path / "b.csv"))
        torch.ones(7)
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
    assert any(e["bytes"] == "28" for e in rows(tmp_path / "a.csv"))


def test_places_that_cannot_be_written(enabled: None, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), mempool.record_trace(tmp_path / "no" / "t.csv"):
        pass
    with pytest.raises(FileNotFoundError), mempool.record_trace(tmp_path / "no" / "t.csv.gz"):
        pass
    with pytest.raises(OSError, match="lost"), mempool.record_trace("/dev/full"):
        torch.ones(10)


def test_an_error_inside_ends_the_recording(enabled: None, tmp_path: Path) -> None:
    with pytest.raises(KeyError), mempool.record_trace(tmp_path / "a.csv"):
        raise KeyError("mine")
    with mempool.record_trace(tmp_path / "b.csv"):
        pass


def test_a_forked_child_that_unwinds_leaves_the_trace_alone(enabled: None, tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    with mempool.record_trace(path):
        torch.ones(11)
        child = os.fork()
        if child == 0:
            try:
                raise SystemExit  # through the `with`, as a worker that ends does
            except SystemExit:
                pass
        if child != 0:
            assert os.waitpid(child, 0)[1] == 0
            torch.ones(17)
    if child == 0:
        os._exit(0)
    with gzip.open(path, "rt", newline="") as file:
        sizes = [row["bytes"] for row in csv.DictReader(file)]
    assert "44" in sizes
    assert "68" in sizes


def test_a_forked_child_records_nothing(enabled: None, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with mempool.record_trace(path):
        torch.ones(11)
        child = os.fork()
        if child == 0:
            torch.ones(13)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        torch.ones(17)
    sizes = [e["bytes"] for e in rows(path)]
    assert "44" in sizes
    assert "68" in sizes
    assert "52" not in sizes
    assert [int(e["seq"]) for e in rows(path)] == list(range(len(sizes)))


@pytest.mark.parametrize("suffix", [b"", b".gz"])
def test_a_path_that_is_no_text(enabled: None, tmp_path: Path, suffix: bytes) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\xfe" + suffix
    for path in (name, os.fsdecode(name)):
        with mempool.record_trace(path):
            torch.ones(7)
        assert mempool.replay(path).peak_live_bytes == 28
    assert os.listdir(os.fsencode(tmp_path)) == [os.path.basename(name)]


def record_and_fail(path: Path) -> None:
    with mempool.record_trace(path):
        torch.ones(9)
        raise ConnectionError(104, "its own")


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_trace_takes_the_place_of_the_old_one_at_the_end(enabled: None, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    with mempool.record_trace(path):
        torch.ones(7)
        assert path.read_bytes() == b"old"
    assert mempool.replay(path).peak_live_bytes == 28
    with pytest.raises(ConnectionError) as caught:
        record_and_fail(path)
    assert caught.value.filename is None
    assert mempool.replay(path).peak_live_bytes == 36  # what led to the error is there
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_trace_that_cannot_be_finished_leaves_the_old_one(
    enabled: None, tmp_path: Path, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"old")
    done = python(
        "import mempool, resource, signal, sys, torch\n"
        "mempool.enable('cpu')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"  # as a disk that is full
        "try:\n"
        "    with mempool.record_trace(sys.argv[1]):\n"
        "        for _ in range(100): torch.ones(7)\n"
        "except OSError as error: print(error.filename, error)\n"
        "try: mempool.dump_snapshot(sys.argv[1])\n"
        "except OSError as error: print(error.filename, error)\n",
        str(path),
    )
    first, second = done.stdout.splitlines()
    assert first.startswith(str(path)), done.stderr
    assert "lost" in first
    assert second.startswith(str(path))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]
