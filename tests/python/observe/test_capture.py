"""Snapshots of the moments at which requests were refused."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import mempool
from mempool.observe import capture_on_oom
from mempool.serving import limit_memory

Python = Callable[..., "subprocess.CompletedProcess[str]"]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    mempool.enable("cpu")
    yield
    wait_for_writers()


def block(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8)


def wait_for_writers() -> None:
    for thread in threading.enumerate():
        if thread.name == "mempool-capture":
            thread.join(60)


def refusal(pool: mempool.MemoryPool, mib: int = 64) -> mempool.OutOfMemoryError:
    with pytest.raises(mempool.OutOfMemoryError) as refused, mempool.use_pool(pool):
        block(mib)
    wait_for_writers()
    return refused.value


def captured(error: BaseException) -> str | None:
    info = mempool.oom_info(error)
    assert info is not None
    path: str | None = info["capture"]
    return path


def test_the_snapshot_is_of_the_refusal_and_the_error_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "a folder" / "captures"
    pool = mempool.MemoryPool("a model", limit="16MiB", metrics_label="encoder")
    with capture_on_oom(folder) as handle, mempool.use_pool(pool):
        held = block(10)
        assert handle.folder == folder
        error = refusal(pool)
    path = captured(error)
    assert path is not None
    assert [str(each) for each in folder.iterdir()] == [path]
    assert path.endswith("-cpu-encoder-pool_limit.pickle")
    assert f"written to {path}" in str(error)
    assert "Largest pools, by their own blocks: 'a model' 10.00 MiB" in str(error)
    assert "the limit is of live blocks" in str(error)
    snapshot = mempool.load_snapshot(path)
    live = [b for s in snapshot["segments"] for b in s["blocks"] if b.get("pool") == "a model"]
    assert [b["size"] for b in live] == [10 * MIB]
    facts = snapshot["oom"]
    assert (facts["reason"], facts["pool"], facts["requested"]) == ("pool_limit", "a model", 64 * MIB)
    del held
    assert captured(refusal(pool)) is None  # it has ended


def test_a_limit_of_the_device_says_what_is_free(tmp_path: Path) -> None:
    held = block(8)
    mempool.set_limit(mempool.memory_reserved("cpu") + 4 * MIB, device="cpu")
    try:
        with capture_on_oom(tmp_path), pytest.raises(mempool.OutOfMemoryError, match="held is free") as error:
            block(512)
    finally:
        mempool.set_limit(None, device="cpu")
    assert captured(error.value) is not None
    del held


def test_one_for_each_label_and_reason_in_an_interval(tmp_path: Path) -> None:
    one = mempool.MemoryPool("one", limit="1MiB", metrics_label="one")
    same = mempool.MemoryPool("same", limit="1MiB", metrics_label="one")
    other = mempool.MemoryPool("other", limit="1MiB", metrics_label="two")
    with capture_on_oom(tmp_path, interval_s=1000):
        assert captured(refusal(one)) is not None
        assert captured(refusal(same)) is None
        assert captured(refusal(one)) is None
        assert captured(refusal(other)) is not None
    with capture_on_oom(tmp_path, interval_s=0):
        assert captured(refusal(one)) is not None
        assert captured(refusal(one)) is not None
    assert len(list(tmp_path.iterdir())) == 4


def test_pools_of_requests_are_captured_only_where_that_is_asked(tmp_path: Path) -> None:
    @limit_memory("1MiB", name="task")
    def task() -> None:
        block(8)

    for request_pools in (False, True):
        with capture_on_oom(tmp_path, request_pools=request_pools):
            with pytest.raises(mempool.OutOfMemoryError) as refused:
                task()
            wait_for_writers()
            assert (captured(refused.value) is not None) == request_pools


def test_the_folder_stays_within_its_bounds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a capture")
    pool = mempool.MemoryPool("pool", limit="1MiB")
    paths = []
    with capture_on_oom(tmp_path, interval_s=0, most_files=3):
        for _ in range(5):
            paths.append(captured(refusal(pool)))
            time.sleep(0.02)
    assert sorted(map(str, tmp_path.glob("oom-*"))) == sorted(map(str, paths[2:]))
    size = os.path.getsize(paths[4])
    with capture_on_oom(tmp_path, interval_s=0, most_bytes=size // 2):
        path = captured(refusal(pool))
    assert path is not None
    assert not os.path.exists(path)  # larger than all of them may be
    with capture_on_oom(tmp_path, interval_s=0, most_bytes=size + size // 2):
        path = captured(refusal(pool))
    assert [str(each) for each in tmp_path.glob("oom-*")] == [path]
    assert {each.name for each in tmp_path.iterdir() if not each.name.startswith("oom-")} == {"notes.txt"}


def test_a_folder_that_vanishes_costs_the_capture_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "captures"
    pool = mempool.MemoryPool("pool", limit="1MiB")
    with capture_on_oom(folder):
        folder.rmdir()
        refusal(pool)
    assert "was not written" in caplog.text


@pytest.mark.parametrize(
    "options", [{"interval_s": -1}, {"interval_s": float("nan")}, {"most_files": 0}, {"most_bytes": "much"}]
)
def test_a_bound_that_is_none_is_refused(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(mempool.ConfigError):
        capture_on_oom(tmp_path, **options)  # type: ignore[arg-type]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        capture_on_oom(tmp_path / "file")


DIES = """
import torch, mempool
mempool.enable("cpu", limit="256MiB")
kept = [torch.empty(16 << 20, dtype=torch.uint8) for _ in range(100)]
"""


def test_a_program_that_ends_of_it_has_written_it(python: Python, tmp_path: Path) -> None:
    done = python(DIES, MEMPOOL_CAPTURE_ON_OOM=str(tmp_path))
    assert done.returncode == 1
    (path,) = tmp_path.iterdir()
    assert f"written to {path}" in done.stderr
    snapshot = mempool.load_snapshot(path)
    assert snapshot["oom"]["reason"] == "device_limit"
    blocks = [block for segment in snapshot["segments"] for block in segment["blocks"]]
    assert sum(block["size"] for block in blocks if block["state"] == "active_allocated") >= 200 * MIB


def test_a_folder_of_the_environment_that_cannot_be_made_is_a_warning(python: Python, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = python("import mempool; print('goes on')", MEMPOOL_CAPTURE_ON_OOM=str(tmp_path / "file"))
    assert done.stdout == "goes on\n"
    assert "MEMPOOL_CAPTURE_ON_OOM" in done.stderr
