"""``mempool doctor``: what this machine has, whether mempool works on it, and how fast it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mempool._device import KINDS
from mempool.doctor.facts import gather
from mempool.ledger import LEDGER_VARIABLE

_TIMEOUT_S = 300


@dataclass(frozen=True)
class Check:
    """One self-check of one device."""

    device: str
    name: str
    passed: bool
    detail: str


def check_device(device: str) -> list[Check]:
    """Runs the self-checks of a device, in its own process: torch takes a CUDA allocator only before its first use."""
    command = [sys.executable, "-m", "mempool.doctor.checks", device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return [Check(device, "process", False, f"no answer within {_TIMEOUT_S} s")]
    checks = [Check(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 and all(check.passed for check in checks):
        last = done.stderr.strip().splitlines()[-1:] or [""]
        checks.append(Check(device, "process", False, f"it ended with status {done.returncode}: {last[0]}"))
    return checks


def check_environment() -> list[Check]:
    """Whether what the environment asks for is what happens; nothing where it asks for nothing."""
    asked = os.environ.get("MEMPOOL_ENABLE")
    if not asked:
        return []
    name = "MEMPOOL_ENABLE"
    if os.environ.get("MEMPOOL_DISABLE") == "1":
        return [Check("all", name, False, "MEMPOOL_DISABLE=1 wins over it")]
    if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0":
        return [Check("all", name, False, "TORCH_DEVICE_BACKEND_AUTOLOAD=0: torch does not load mempool")]
    detail = f"{asked}: in every process that imports torch"
    if LEDGER_VARIABLE in os.environ:
        detail += f"; one limit for all processes of ledger {os.environ[LEDGER_VARIABLE]}"
    elif "%" in asked:
        detail += "; a percentage is each process's own: name a ledger by MEMPOOL_LEDGER to make it one for all"
    return [Check("all", name, True, detail)]


Progress: TypeAlias = Callable[[float, str], None]  # how much is done, 0 to 1, and what comes next


def examine(progress: Progress | None = None) -> dict[str, Any]:
    """The facts of this machine, and the self-checks of every device that mempool can serve."""
    facts = gather()
    checks = check_environment()
    devices = [name for kind in KINDS.values() if kind.problem() is None for name in kind.names()]
    for done, device in enumerate(devices):
        if progress is not None:
            progress(done / len(devices), device)
        checks += check_device(device)
    return {
        "facts": facts,
        "checks": [asdict(check) for check in checks],
        "passed": all(check.passed for check in checks),
    }


def run_benchmarks(cuda: bool, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Runs the benchmarks of the source folder that mempool was built from; nothing where there is none."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / "benchmarks" / "common.py").exists():
        return []
    modules = ["benchmarks.alloc.run", "benchmarks.fragmentation.sleep"]
    modules += ["benchmarks.cuda.run"] if cuda else []
    out = []
    for count, module in enumerate(modules):
        if progress is not None:
            progress(count / len(modules), module)
        done = subprocess.run([sys.executable, "-m", module], cwd=root, capture_output=True, text=True, check=False)
        out.append(
            {"benchmark": module, "status": done.returncode, "output": done.stdout, "errors": done.stderr[-2000:]}
        )
    return out
