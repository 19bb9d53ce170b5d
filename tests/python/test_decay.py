"""Free memory goes back to the system by itself, after ``decay_ms``."""

from __future__ import annotations

import os
import subprocess
import sys

BURST = """
import os, time, torch, mempool
mempool.enable("cpu")
def burst():
    blocks = [torch.empty(1 << 20) for _ in range(40)]
    held = mempool.memory_reserved()
    del blocks
    return held
def wait_until_small():
    for _ in range(200):
        if mempool.memory_reserved() < 40 << 20:
            return True
        time.sleep(0.05)
    return False
assert burst() >= 160 << 20
assert wait_until_small()
"""


def run(script: str) -> None:
    environment = {**os.environ, "MEMPOOL_CONF": "decay_ms:300"}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, env=environment)


def test_memory_goes_back_without_a_call() -> None:
    run(BURST)


def test_a_forked_child_has_a_decay_of_its_own() -> None:
    run(
        BURST + "child = os.fork()\n"
        "if child == 0: os._exit(0 if burst() >= 160 << 20 and wait_until_small() else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert burst() >= 160 << 20 and wait_until_small()"
    )
