"""What a machine may lack: huge pages, moves, address space."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys

import pytest

WORK = """
import torch, mempool
torch.set_num_threads(1)
mempool.enable("cpu")
for round in range(3):
    blocks = [torch.full((1 << 20,), float(i)) for i in range(24)]
    del blocks[::2]
    wide = torch.ones(10 << 20)
    assert all(float(b[0]) == 2 * i + 1 == float(b[-1]) for i, b in enumerate(blocks))
    assert float(wide.sum()) == 10 << 20
    del blocks, wide
from mempool._device_cpu import cpu
assert cpu().check_invariants() == ""
print(mempool.memory_stats()["num_moves"])
"""
GIB = 1 << 30
# Nothing but what torch needs: on tests/cuda_standin, where its NVIDIA libraries are.
KEPT = ("LD_PRELOAD", "LD_LIBRARY_PATH", "CUDA_STANDIN_DEVICES")
ENVIRONMENT = {name: os.environ[name] for name in KEPT if name in os.environ} | {"OMP_NUM_THREADS": "1", "PATH": ""}


def run(conf: str, address_space: int | None = None) -> int:
    def tighten() -> None:
        if address_space is not None:
            resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))

    done = subprocess.run(
        [sys.executable, "-c", WORK],
        env={"MEMPOOL_CONF": conf, **ENVIRONMENT},
        preexec_fn=tighten,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


@pytest.mark.parametrize("conf", ["huge_pages:false", "segment_bytes:64MiB", "thread_cache_bytes:0", ""])
def test_work_gets_done_with_less(conf: str) -> None:
    assert run(conf) >= 0


def test_without_moves_nothing_moves() -> None:
    assert run("stitch:false") == 0


def address_space_of_torch() -> int:
    """Bytes of addresses that a process has taken once torch is there: CUDA builds map several times what others do."""
    status = "import torch; print(open('/proc/self/status').read())"
    done = subprocess.run(
        [sys.executable, "-c", status],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = re.search(r"^VmPeak:\s+(\d+) kB$", done.stdout, re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def test_little_address_space() -> None:
    assert run("", address_space_of_torch() + 3 * GIB) >= 0
