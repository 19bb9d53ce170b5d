"""Features of torch that allocate CPU tensors work with mempool under them."""

from __future__ import annotations

import gc
import io
import os
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import mempool


class Squares(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        assert index >= 0
        return torch.full((3000,), float(index)) ** 2


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_data_loader_workers(enabled: None, method: str) -> None:
    loader = DataLoader(Squares(), batch_size=8, num_workers=2, multiprocessing_context=method)
    for _ in range(2):
        seen = torch.cat([batch[:, 0] for batch in loader])
        assert torch.equal(seen, torch.arange(64.0) ** 2)


def test_numpy_views_outlive_their_tensor(live_bytes: Callable[[], int]) -> None:
    x = torch.arange(100_000)
    view = x.numpy()
    del x
    gc.collect()
    assert live_bytes() == 802816
    churn = [torch.ones(100_000, dtype=torch.int64) for _ in range(10)]
    del churn
    assert np.array_equal(view, np.arange(100_000))
    del view
    assert live_bytes() == 0


def test_save_and_load(enabled: None) -> None:
    file = io.BytesIO()
    model = torch.nn.Linear(300, 200)
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file)
    assert torch.equal(loaded["weight"], model.weight)


def test_fork_in_a_threaded_process(enabled: None) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            [torch.ones(n) for n in (10, 10_000, 1_000_000)]

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    parent = torch.zeros(1_000_000)
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                # Only this thread exists here. Its memory is a private copy, and everything still works. (libgomp's
                # threads are gone, and a parallel operation would wait for them for ever, with any allocator.)
                torch.set_num_threads(1)
                parent.fill_(1)
                kept = [torch.full((n,), 2.0) for n in (10, 10_000, 1_000_000)]
                total = sum(float(x.sum()) for x in kept)
                del kept
                mempool.empty_cache()
                os._exit(0 if total == 2_020_020 else 1)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert float(parent.sum()) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_the_profiler_sees_the_bytes(enabled: None) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        x = torch.ones(1 << 20)
        del x
    by_name = {event.key: event for event in profile.key_averages()}
    assert by_name["aten::empty"].self_cpu_memory_usage == 4 << 20
    assert by_name["[memory]"].self_cpu_memory_usage == -(4 << 20)


def test_autograd_and_shared_memory(live_bytes: Callable[[], int]) -> None:
    x = torch.randn(200, 200, requires_grad=True)
    (x @ x).relu().sum().backward()
    assert x.grad is not None
    shared = torch.ones(1000).share_memory_()
    assert shared.is_shared()
    assert float(shared.sum()) == 1000
    del x, shared
    gc.collect()
    assert live_bytes() == 0


def test_memory_is_used_again_from_step_to_step(enabled: None) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 512))
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(64, 512)).square().mean().backward()
        optimizer.step()

    for _ in range(5):
        step()
    for _ in range(5):  # which thread frees what differs a little from step to step
        before = mempool.memory_stats()
        for _ in range(20):
            step()
        after = mempool.memory_stats()
        assert after["allocated_bytes.all.current"] == before["allocated_bytes.all.current"]
        if after["num_device_alloc"] == before["num_device_alloc"]:
            return
    raise AssertionError("it takes new memory for ever")


def test_tensors_that_die_with_the_interpreter(python: Callable[..., object]) -> None:
    done = python(
        "import torch, mempool, threading, atexit\n"
        "mempool.enable(); mempool.record_history(True)\n"
        "mempool.on_pressure(lambda pool, needed: None)\n"
        "kept = torch.ones(1 << 20); local = threading.local(); local.x = torch.ones(10)\n"
        "atexit.register(lambda: torch.ones(1 << 20))\n"
        "class AtEnd:\n"
        "    def __del__(self): self.x = torch.ones(1000)\n"
        "at_end = AtEnd()\n"
    )
    assert done.returncode == 0, done.stderr  # type: ignore[attr-defined]
