"""``mempool doctor``: what this machine has, whether mempool works on it, and how fast it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mempool._device import KINDS
from mempool.doctor import children
from mempool.doctor.facts import gather
from mempool.ledger import LEDGER_VARIABLE, loads_entry_points

_CHECK_S = 120
# A layer of the GPU's examination at all numbers of tokens, its packing and the CPU's outputs included.
_SUBJECT_S = 240
_BENCHMARK_S = 1200


@dataclass(frozen=True)
class Check:
    """One self-check of one device."""

    device: str
    name: str
    passed: bool
    detail: str


def check_device(device: str) -> Iterator[Check]:
    """Runs the self-checks of a device in processes of their own, where a hang or a crash costs one check."""
    from mempool.doctor import checks

    command = [sys.executable, "-m", checks.__name__, device]
    for answer in children.answers(command, checks.of_device(device), _CHECK_S):
        found = answer.value or {"passed": False, "detail": answer.problem}
        yield Check(device, answer.item, found["passed"], found["detail"])


def check_environment() -> list[Check]:
    """Whether what the environment asks for is what happens; nothing where it asks for nothing."""
    asked = os.environ.get("MEMPOOL_ENABLE")
    if not asked:
        return []
    name = "MEMPOOL_ENABLE"
    if os.environ.get("MEMPOOL_DISABLE") == "1":
        return [Check("all", name, False, "MEMPOOL_DISABLE=1 wins over it")]
    if not loads_entry_points():
        return [Check("all", name, False, "TORCH_DEVICE_BACKEND_AUTOLOAD=0: torch does not load mempool")]
    detail = f"{asked}: in every process that imports torch"
    if os.environ.get(LEDGER_VARIABLE):
        detail += f"; one limit for all processes of ledger {os.environ[LEDGER_VARIABLE]}"
    elif "%" in asked:
        detail += "; a percentage is each process's own: name a ledger by MEMPOOL_LEDGER to make it one for all"
    return [Check("all", name, True, detail)]


Progress: TypeAlias = Callable[[float, str], None]  # how much is done, 0 to 1, and what comes next
Changed: TypeAlias = Callable[[dict[str, Any]], None]  # called with the result so far, whenever there is more of it


def examine(progress: Progress | None = None, changed: Changed | None = None) -> dict[str, Any]:
    """The facts of this machine, and the self-checks of every device that mempool can serve.

    ``passed`` is None in a result that is not complete.
    """
    result: dict[str, Any] = {"facts": gather(), "checks": [asdict(check) for check in check_environment()]}
    result["passed"] = None
    _tell(changed, result)
    devices = [name for kind in KINDS.values() if kind.problem() is None for name in kind.names()]
    for done, device in enumerate(devices):
        if progress is not None:
            progress(done / len(devices), device)
        for check in check_device(device):
            result["checks"].append(asdict(check))
            _tell(changed, result)
    result["passed"] = all(check["passed"] for check in result["checks"])
    _tell(changed, result)
    return result


def examine_gpu(progress: Progress | None = None, changed: Changed | None = None) -> dict[str, Any]:
    """What :func:`mempool.doctor.gpu.examine` does, where a kernel that hangs or crashes costs one layer's rows."""
    from mempool.doctor import gpu

    result = gpu.opening()
    _tell(changed, result)
    if result["problem"] is not None:
        return result
    subjects = gpu.subjects()
    command = [sys.executable, "-m", gpu.__name__]
    for done, answer in enumerate(children.answers(command, subjects, _SUBJECT_S), 1):
        result["rows"] += answer.value if answer.problem is None else [gpu.lost(answer.item, answer.problem)]
        if progress is not None:
            progress(done / len(subjects), answer.item)
        _tell(changed, result)
    result["passed"] = gpu.has_passed(result["rows"])
    _tell(changed, result)
    return result


def _tell(changed: Changed | None, result: dict[str, Any]) -> None:
    if changed is not None:
        changed(result)


def benchmark_modules(cuda: bool) -> list[list[str]]:
    """The benchmarks of the source folder, with their arguments; none where mempool was not installed from one."""
    if not (_source_folder() / "benchmarks" / "common.py").exists():
        return []
    modules = [["benchmarks.alloc.run"], ["benchmarks.fragmentation.sleep"]]
    # It ends by itself, with what it has, before it would be ended.
    on_gpu = ["benchmarks.cuda.run", "--device", "real", "--rounds", "1", "--seconds", str(_BENCHMARK_S // 2)]
    return [*modules, on_gpu] if cuda else modules


def run_benchmarks(
    cuda: bool, progress: Progress | None = None, changed: Callable[[list[dict[str, Any]]], None] | None = None
) -> list[dict[str, Any]]:
    """Runs them one after another, each for a limited time, and calls ``changed`` with all results after each."""
    modules = benchmark_modules(cuda)
    out: list[dict[str, Any]] = []
    for count, words in enumerate(modules):
        if progress is not None:
            progress(count / len(modules), words[0])
        command = [sys.executable, "-m", *words]
        status, said, errors = children.run(command, str(_source_folder()), _BENCHMARK_S)
        out.append({"benchmark": words[0], "status": status, "output": said, "errors": errors[-2000:]})
        if changed is not None:
            changed(out)
    return out


def _source_folder() -> Path:
    return Path(__file__).resolve().parent.parent.parent
