"""Pinned memory in processes that are forked, that the environment enables it in, and under ``mempool run``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import control
import pytest

Run = Callable[..., str]

FORK = """
import os, torch, mempool
mempool.enable("pinned")
kept = torch.full((300_000,), 5, dtype=torch.uint8).pin_memory()
waiting = torch.ones(5000, pin_memory=True)
child = os.fork()
if child == 0:
    assert bytes(kept[:9].numpy()) == b"\5" * 9
    held = mempool.memory_reserved("pinned")
    try:
        torch.empty(100, pin_memory=True)
    except RuntimeError as error:
        assert "forked" in str(error) and "spawn" in str(error), error
    else:
        raise AssertionError("pinned memory in a forked child")
    del kept, waiting
    assert mempool.trim("pinned") == 0
    assert mempool.memory_reserved("pinned") == held
    os._exit(3)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 3, status
del waiting
assert bytes(kept[:9].numpy()) == b"\5" * 9
again = torch.empty(300_000, dtype=torch.uint8, pin_memory=True)
again.fill_(6)
assert bytes(kept[:9].numpy()) == b"\5" * 9
del kept, again
print(mempool.trim("pinned") > 0, mempool.memory_reserved("pinned"))
"""


def test_a_forked_child_reads_and_is_refused_more(run_on_device: Run) -> None:
    assert run_on_device(FORK).strip() == "True 0"


BUSY = """
import os, threading, torch, mempool
mempool.enable("pinned")
kept = torch.ones(1000, pin_memory=True)
stop = threading.Event()

def work():
    stream = torch.cuda.Stream()
    while not stop.is_set():
        blocks = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in (100, 100_000, 3_000_000)]
        with torch.cuda.stream(stream):
            copies = [block.to("cuda", non_blocking=True) for block in blocks]
        del blocks, copies
        torch.cuda.host_memory_stats()
        mempool.trim("pinned")

threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(15):
    child = os.fork()
    if child == 0:
        mempool.memory_stats("pinned")
        mempool.trim("pinned")
        torch._C._host_emptyCache()
        torch._C._cuda_hostMemoryStats()
        os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 3, status
stop.set()
for thread in threads:
    thread.join()
assert bytes(kept[:9].numpy()) == torch.ones(9).numpy().tobytes()
print("well")
"""


def test_a_fork_under_threads_that_use_it_hangs_nothing(run_on_device: Run) -> None:
    assert run_on_device(BUSY).strip() == "well"


def test_a_child_of_a_parent_that_has_not_used_it_may(run_on_device: Run) -> None:
    script = """
import os, torch, mempool
child = os.fork()
if child == 0:
    kept = torch.ones(1000, pin_memory=True)
    assert kept.is_pinned()
    assert mempool.memory_allocated("pinned") > 0
    os._exit(3)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""
    assert run_on_device(script, MEMPOOL_ENABLE="pinned").strip() == "3"


def test_the_environment_enables_it_with_a_limit(run_on_device: Run) -> None:
    script = """
import torch, mempool
print(mempool.is_enabled("pinned"), mempool.is_enabled("cpu"), mempool.get_limit("pinned"))
kept = torch.ones(1000, pin_memory=True)
print(mempool.memory_stats("pinned")["allocation.all.current"])
"""
    assert run_on_device(script, MEMPOOL_ENABLE="pinned=4GiB").split() == ["True", "False", str(4 << 30), "1"]


def test_options_of_the_environment_are_its_options_too(run_on_device: Run) -> None:
    script = "import mempool; mempool.enable('pinned'); print(mempool.get_limit('pinned'))"
    assert run_on_device(script, MEMPOOL_CONF="limit:64MiB").strip() == str(64 << 20)


def test_one_limit_for_several_processes(run_on_device: Run) -> None:
    script = """
import os, subprocess, sys, torch, mempool
mempool.enable("pinned", limit="16MiB", shared=True)
kept = torch.empty(6 << 20, dtype=torch.uint8, pin_memory=True)
if len(sys.argv) == 1:
    child = [sys.executable, "-c", os.environ["SCRIPT"], "child"]
    said = subprocess.run(child, capture_output=True, text=True, check=True).stdout
    print(said, mempool.shared_report("pinned").peak_held, mempool.shared_report("pinned").limit)
else:
    try:
        torch.empty(6 << 20, dtype=torch.uint8, pin_memory=True)
    except torch.OutOfMemoryError as error:
        print(mempool.oom_info(error)["reason"], mempool.shared_report("pinned").held)
"""
    said = run_on_device(script, SCRIPT=script).split()
    assert said == ["shared_limit", str(12 << 20), str(12 << 20), str(16 << 20)]


def _mempool(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(control.__file__).parent / "run"), sys.executable, "-m", "mempool", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.stand_in
def test_a_script_is_run_with_it() -> None:
    code = "import torch; kept = torch.ones(1 << 20, pin_memory=True)"
    done = _mempool("run", "--device", "pinned", "--limit", "1GiB", "-c", code)
    assert done.returncode == 0, done.stderr
    assert "mempool: pinned memory of this run" in done.stderr
    done = _mempool("run", "--device", "pinned", "--json", "-c", code)
    figures = json.loads(done.stderr)["devices"]["pinned"]
    assert figures["allocated_bytes.all.peak"] == 4 << 20


@pytest.mark.stand_in
def test_the_doctor_examines_it() -> None:
    from mempool.doctor import checks

    names = list(checks.of_device("pinned"))
    assert "copies are waited for" in names
    script = """
from mempool.doctor import check_device
for each in check_device("pinned"):
    print(each.passed, each.name, each.detail)
"""
    command = [str(Path(control.__file__).parent / "run"), sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    lines = done.stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["True"] * len(names), done.stdout + done.stderr


def test_settings_of_torchs_own_allocator_are_named(run_on_device: Run) -> None:
    script = """
import warnings, mempool
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    mempool.enable("pinned")
print(*(each.message for each in seen))
"""
    given = "pinned_use_cuda_host_register:True,pinned_num_register_threads:8"
    said = run_on_device(script, PYTORCH_CUDA_ALLOC_CONF=given)
    assert "pinned_num_register_threads:8" in said
    assert "pinned_use_cuda_host_register" not in said
