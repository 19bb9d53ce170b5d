"""Pools that sleep and wake, with and without their contents."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mempool

MIB = 1 << 20


@pytest.fixture
def pool(enabled: None) -> Iterator[mempool.MemoryPool]:
    yield mempool.MemoryPool("model", isolated=True)
    gc.collect()  # caught errors hold tensors in cycles


def test_weights_survive_a_sleep(pool: mempool.MemoryPool) -> None:
    with mempool.use_pool(pool):
        model = torch.nn.Linear(1500, 1500)
    address = model.weight.data_ptr()
    inputs = torch.randn(3, 1500)
    before = model(inputs)
    reserved = mempool.memory_reserved()
    pool.sleep()
    assert pool.asleep
    assert pool.total_bytes() == 0
    assert pool.used_bytes() > 9 * 10**6
    assert mempool.memory_reserved() < reserved - 9 * 10**6 + 2 * MIB
    assert "asleep" in repr(pool)
    pool.wake()
    assert not pool.asleep
    assert model.weight.data_ptr() == address
    assert torch.equal(model(inputs), before)


def test_a_pool_that_sleeps_takes_no_blocks(pool: mempool.MemoryPool) -> None:
    with mempool.use_pool(pool):
        kept = torch.ones(MIB)
    pool.sleep(keep=False)
    with mempool.use_pool(pool), pytest.raises(RuntimeError, match="asleep"):
        torch.ones(10)
    del kept  # freeing is fine
    assert pool.used_bytes() == 0
    pool.wake()
    with mempool.use_pool(pool):
        assert torch.ones(10).sum() == 10


def test_waking_obeys_the_limit(pool: mempool.MemoryPool) -> None:
    with mempool.use_pool(pool):
        kept = torch.full((16 * MIB,), 3.0)
    pool.sleep()
    mempool.trim()
    mempool.set_limit(mempool.memory_reserved() + 8 * MIB)
    try:
        with pytest.raises(mempool.OutOfMemoryError, match="model") as caught:
            pool.wake()
        assert mempool.oom_info(caught.value)["reason"] == "device_limit"
        assert pool.asleep
    finally:
        mempool.set_limit(None)
    pool.wake()
    assert kept.sum() == 3 * 16 * MIB


def test_a_pool_without_blocks_sleeps_until_it_is_woken(pool: mempool.MemoryPool) -> None:
    pool.sleep()
    mempool.empty_cache()
    assert pool.asleep
    assert mempool.defragment().largest_free_bytes == 0
    pool.wake()
    with mempool.use_pool(pool):
        assert torch.ones(10).sum() == 10


def test_a_snapshot_says_what_sleeps(pool: mempool.MemoryPool) -> None:
    with mempool.use_pool(pool):
        kept = torch.ones(MIB)
    pool.sleep()
    names = {block["pool"]: segment for segment in mempool.memory_snapshot()["segments"] for block in segment["blocks"]}
    assert "model" in names
    pool.wake()
    assert kept.sum() == MIB


def test_only_isolated_pools_sleep(enabled: None) -> None:
    with pytest.raises(mempool.ConfigError, match="isolated=True"):
        mempool.MemoryPool("shared").sleep()


def test_no_place_for_the_contents(pool: mempool.MemoryPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with mempool.use_pool(pool):
        kept = torch.ones(MIB)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(mempool.PoolStateError, match="TMPDIR"):
        pool.sleep()
    assert not pool.asleep
    assert kept.sum() == MIB


def test_an_access_during_sleep_faults() -> None:
    script = (
        "import mempool, torch; mempool.enable('cpu'); p = mempool.MemoryPool('m', isolated=True)\n"
        "with mempool.use_pool(p): t = torch.ones(1 << 20)\n"
        "p.sleep(); t.sum(); print('read something')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGSEGV
    assert "read something" not in done.stdout


def test_a_sleeping_pool_is_whole_in_a_forked_child(pool: mempool.MemoryPool) -> None:
    with mempool.use_pool(pool):
        kept = torch.arange(MIB)
    expected = kept.clone()
    pool.sleep()
    child = os.fork()
    if child == 0:
        pool.wake()
        os._exit(0 if (kept.numpy() == expected.numpy()).all() else 1)  # no parallel op in a forked child
    assert os.waitpid(child, 0)[1] == 0
    pool.wake()
    assert torch.equal(kept, expected)


def test_defragment_reports_what_it_did(enabled: None) -> None:
    tensors = [torch.empty(4 * MIB, dtype=torch.uint8) for _ in range(16)]
    del tensors[::2]
    report = mempool.defragment("cpu")
    assert report.regained_bytes >= 0
    assert report.moved_bytes >= 0
    assert report.seconds > 0
    assert report.largest_free_bytes >= 32 * MIB
    assert mempool.defragment().moved_handles == 0


def test_a_pool_stays_awake_where_its_contents_have_no_place_and_says_which(
    pool: mempool.MemoryPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with mempool.use_pool(pool):
        kept = torch.full((3 * MIB,), 7.0)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    with pytest.raises(mempool.errors.PoolStateError) as caught:
        pool.sleep()
    assert str(tmp_path / "missing") in str(caught.value)
    assert "No such file or directory" in str(caught.value)
    assert "keep=False" in str(caught.value)
    assert not pool.asleep
    assert float(kept[-1]) == 7.0
    del caught
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    pool.sleep()
    pool.wake()
    assert float(kept[-1]) == 7.0
