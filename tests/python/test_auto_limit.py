"""A limit that moves with what others use of the machine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mempool
from mempool import _core

Python = Callable[..., "subprocess.CompletedProcess[str]"]

MACHINE = """
import gc, os, sys, time, torch, mempool
from mempool import _core

MIB = 1 << 20
root = sys.argv[1]
torch.set_num_threads(1)  # OpenMP does not survive a fork

def write(file, text):
    os.makedirs(os.path.dirname(f"{root}/{file}"), exist_ok=True)
    with open(f"{root}/{file}.new", "w") as new:
        new.write(text)
    os.replace(f"{root}/{file}.new", f"{root}/{file}")  # the watch reads at any time

def use(mib, inactive_file=0):
    write("sys/fs/cgroup/service/memory.stat", f"inactive_file {inactive_file * MIB}")
    write("sys/fs/cgroup/service/memory.current", str(mib * MIB))

write("proc/meminfo", "MemTotal: 4096000 kB")
write("proc/self/cgroup", "0::/service")
write("sys/fs/cgroup/service/memory.max", str(1024 * MIB))
use(100)

def outside():
    return mempool.memory_stats("cpu")["outside_bytes"] // MIB

def block(mib):
    return torch.empty(mib * MIB, dtype=torch.uint8)

def refused(mib):
    try:
        block(mib)
        return False
    except torch.OutOfMemoryError as error:
        return mempool.oom_info(error)["reason"]

def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
"""

OTHERS = (
    MACHINE
    + """
mempool.enable("cpu")
_core.watch_outside(True, root)
print(mempool.get_limit("cpu") // MIB, outside())
kept = block(300).fill_(1)
use(400)
print(outside(), refused(600), refused(500))
calls = []
mempool.on_pressure(lambda pool, needed: calls.append((pool, needed // MIB)))
use(400, inactive_file=300)
print(outside())
use(1010)
until(lambda: calls)
print(outside(), calls[0][0], calls[0][1] > 0, kept.numel() // MIB)
use(400)
print(outside(), refused(500))
if os.fork() == 0:
    until(lambda: outside() in (99, 100, 101))
    print("child", refused(2000), flush=True)
    os._exit(0)
os.wait()
"""
)


def test_what_others_use_counts_in_the_limit(python: Python, tmp_path: Path) -> None:
    done = python(OTHERS, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "992 100",
        "100 device_limit False",
        "0",  # page cache is as good as free
        "710 default True 300",
        "100 False",
        "child device_limit",
    ]


SHARED = (
    MACHINE
    + """
mempool.enable("cpu", limit="992MiB", shared=True)
_core.watch_outside(True, root)
parents = block(200).fill_(1)
ready, go = os.pipe(), os.pipe()
if os.fork() == 0:
    own = block(200).fill_(1)
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    until(lambda: refused(400) == "shared_limit")
    until(lambda: refused(250) is False)
    os._exit(0)
os.read(ready[0], 1)
time.sleep(1)  # the child tells what it has in memory
use(500)
time.sleep(1)
until(lambda: refused(500) == "shared_limit")  # 992 - 400 of both - 100 of others
until(lambda: refused(400) is False)
use(700)
until(lambda: refused(400) == "shared_limit")
os.write(go[1], b"x")
print(os.waitstatus_to_exitcode(os.wait()[1]), outside())
"""
)


def test_processes_that_share_a_limit_count_others_once(python: Python, tmp_path: Path) -> None:
    done = python(SHARED, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0 0\n"


@pytest.fixture
def enabled() -> Iterator[None]:
    mempool.enable("cpu")
    yield
    mempool.set_limit(None, device="cpu")
    assert not _core.is_watching_outside()


def test_the_word_is_understood_wherever_a_limit_is_given(enabled: None) -> None:
    capacity, limit = _core.auto_limit()
    mempool.set_limit("auto", device="cpu")
    assert mempool.get_limit("cpu") == limit < capacity
    assert mempool.memory_stats("cpu")["outside_bytes"] > 0
    mempool.set_limit("16GiB", device="cpu")
    assert mempool.get_limit("cpu") == 16 << 30
    assert mempool.memory_stats("cpu")["outside_bytes"] == 0
    mempool.enable("cpu", limit="auto")
    assert mempool.get_limit("cpu") == limit
    with pytest.raises(mempool.ConfigError):
        mempool.set_limit("much", device="cpu")
    assert mempool.get_limit("cpu") == limit
    assert _core.is_watching_outside()


def test_it_is_for_held_bytes_of_the_cpu(enabled: None) -> None:
    with pytest.raises(mempool.ConfigError):
        mempool.set_limit("auto", device="cpu", soft=True)
    with pytest.raises(mempool.ConfigError):
        mempool.MemoryPool("pool", limit="auto")
    assert not _core.is_watching_outside()


def test_children_are_told(python: Python) -> None:
    parent = "import subprocess, sys, mempool; mempool.enable('cpu', limit='auto', shared=True); "
    child = "import torch, mempool; from mempool import _core; print(_core.is_watching_outside(), "
    child += "mempool.get_limit('cpu', shared=True) == _core.auto_limit()[1])"
    done = python(parent + f"subprocess.run([sys.executable, '-c', {child!r}])")
    assert done.stdout == "True True\n", done.stderr
