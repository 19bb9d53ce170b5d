"""The CUDA benchmark runs on the device that it is told, says so, and finds data that is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import control
import pytest

ROOT = Path(__file__).resolve().parents[3]
LIBRARIES = Path(os.environ.get("CUDA_STANDIN_LIB", ROOT / "build" / "cuda_standin" / "lib"))
sys.path.insert(0, str(ROOT))
needs_stand_in = pytest.mark.skipif(not LIBRARIES.is_dir(), reason="no stand-in: run `make standin`")


def python(*words: str, plays: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    if plays:
        command = [str(Path(control.__file__).with_name("run")), *command]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)


def worker(task: str, side: str) -> dict[str, object]:
    words = ("-m", "benchmarks.cuda.worker", "--device", "stand-in", "--side", side, "--scale", "0.01", task)
    done = python(*words)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@needs_stand_in
@pytest.mark.parametrize("task", ["cold", "holes", "races", "sleep"])
def test_a_task_gives_figures_and_right_data(task: str) -> None:
    figures = worker(task, "mempool")
    wrong = {name: value for name, value in figures.items() if name.startswith("wrong_")}
    assert not any(wrong.values())
    assert wrong or task == "cold"


@needs_stand_in
def test_the_stand_in_is_not_taken_for_a_gpu() -> None:
    done = python("-m", "benchmarks.cuda.worker", "--device", "real", "--side", "native", "facts", plays=True)
    assert done.returncode == 1
    assert done.stderr == "a GPU was asked for, and the driver that is loaded is the stand-in.\n"


@needs_stand_in
def test_a_report_says_what_device_it_is_of(tmp_path: Path) -> None:
    words = ("--device", "stand-in", "--only", "cold", "--rounds", "2", "--scale", "0.01", "--out", str(tmp_path))
    done = python("-m", "benchmarks.cuda.run", *words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "cuda.json").read_text())
    assert report == json.loads(done.stdout)
    assert report["device"]["kind"] == "stand-in"
    assert [(row["round"], row["side"]) for row in report["runs"]] == [
        (number, side) for number in (0, 1) for side in ("native", "expandable", "mempool")
    ]
    assert report["failures"] == []


@needs_stand_in
def test_every_call_of_the_driver_is_measured(tmp_path: Path) -> None:
    words = ("--device", "stand-in", "--rounds", "1", "--out", str(tmp_path), "--json")
    done = python("-m", "benchmarks.cuda.driver_costs", *words)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    calls = {"cuMemAddressReserve", "cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemUnmap", "cuMemRelease"}
    assert {row["call"] for row in report["rows"]} == calls | {"cuMemAddressFree", "cudaMalloc", "cudaFree"}
    assert report["device"]["kind"] == "stand-in"
    assert all(row["us"]["median"] > 0 for row in report["rows"])


@needs_stand_in
def test_a_sample_that_another_has_written_to_is_counted() -> None:
    script = (
        "from benchmarks.cuda.device import open_device\n"
        "from benchmarks.cuda.streams import _Race\n"
        "race = _Race(open_device('stand-in', 'mempool'), 20, seed=1)\n"
        "for index in range(6): race.make(index)\n"
        "race.live[2][0].copy_(race.patterns[6][: race.live[2][0].nbytes])\n"
        "for _ in range(6): race.end_one()\n"
        "print(race.wrong(), flush=True)\n"
        "import os; os._exit(0)"
    )
    done = python("-c", script)
    assert done.stdout == "2\n", done.stderr  # both ends of that block


def test_what_must_not_be_fails_the_run() -> None:
    from benchmarks.cuda.run import failures

    good = {"task": "holes", "side": "native", "figures": {"wrong_blocks": 0, "again_ms": 1.0}}
    assert failures([good]) == []
    wrong = {"task": "holes", "side": "mempool", "figures": {"wrong_blocks": 2}}
    lost = {"task": "cold", "side": "mempool", "error": "status 1"}
    assert failures([good, wrong, lost]) == ["cold, mempool: failed", "holes, mempool: 2 wrong blocks"]
