"""What gpu-check would run, and what it says where it cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import built_package
import cuda_toolkit
import needs
import pytest
import source_tree
import stages
from stages import Check

ROOT = Path(__file__).resolve().parents[3]
needs_stand_in = pytest.mark.skipif(not needs.stand_in().is_dir(), reason="no stand-in: run `make standin`")


def gpu_check(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tests" / "gpu"), *words]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    monkeypatch.setattr(built_package, "TREE", source_tree.copy_without_package(ROOT, tmp_path / "tree"))
    return Check(tmp_path / "out", "real")


def test_every_file_of_tests_is_a_step(real: Check) -> None:
    found = list(stages.test(real))
    files = sorted(path.name for path in (ROOT / "tests" / "cuda").glob("test_*.py"))
    assert [Path(step.name).name for step in found] == ["native", *files, "python"]
    assert all(step.environment["MEMPOOL_TEST_DEVICE"] == "real" for step in found)
    assert all(step.cwd == built_package.TREE and step.limit_s <= 300 for step in found)


def test_the_tree_has_all_but_the_package(real: Check) -> None:
    assert not (built_package.TREE / "mempool").exists()
    assert (built_package.TREE / "benchmarks" / "cuda" / "run.py").exists()
    assert (built_package.TREE / "pyproject.toml").exists()


def test_a_real_device_is_named_to_whoever_measures(real: Check) -> None:
    for stage in (stages.bench, stages.driver_costs):
        (step,) = stage(real)
        assert step.command[step.command.index("--device") + 1] == "real"
    (step,) = stages.doctor(real)
    assert {"--gpu", "--full"} < set(step.command)


def test_no_stage_may_take_nine_minutes(real: Check) -> None:
    assert stages.LIMIT_S < 540
    for stage in (stages.bench, stages.driver_costs, stages.doctor):
        assert all(step.limit_s <= stages.LIMIT_S for step in stage(real))


def test_without_nvcc_the_build_says_so(real: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_toolkit, "program", lambda name: None)
    monkeypatch.setattr(cuda_toolkit, "header_folders", lambda: [Path("/include")])
    monkeypatch.setattr(built_package, "FOLDER", real.out / "package")
    step = next(iter(stages.build(real)))
    assert (step.command, step.is_needed) == ((), True)
    assert "there is no nvcc" in step.why_not
    (step,) = stages.sanitize(real)
    assert step.why_not == "there is no compute-sanitizer"


def test_what_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "ALWAYS", ("sys", "nonesuch"))
    monkeypatch.setattr(needs, "gpu_problem", lambda: None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert needs.missing(is_built_here=False, is_real=True) == ["nonesuch", "no-such-compiler"]
    assert needs.missing_modules(("sys", "nonesuch")) == ["nonesuch"]
    assert "there is no a, no b; PYTHON=" in needs.sentence(["a", "b"])


@needs_stand_in
def test_a_machine_without_a_gpu_is_refused() -> None:
    done = gpu_check("test", "--device", "real")
    assert done.returncode == 2
    assert "there is no GPU that torch can use" in done.stderr or "no CUDA build of torch" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@needs_stand_in
def test_a_dry_run_leaves_its_results(tmp_path: Path) -> None:
    done = gpu_check("driver-costs", "sanitize", "--device", "stand-in", "--small", "--out", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [stage["stage"] for stage in result["stages"]] == ["driver-costs", "sanitize"]
    assert [stage["steps"][0]["status"] for stage in result["stages"]] == ["passed", "not here"]
    assert json.loads((tmp_path / "driver-costs.json").read_text()) == result["stages"][0]
    assert json.loads((tmp_path / "cuda_driver_costs.json").read_text())["device"]["kind"] == "stand-in"


@needs_stand_in
def test_whoever_ends_it_ends_its_steps(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "gpu"), "bench", "--device", "stand-in", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while not (children := _children(process.pid)) and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert children
    assert not any(Path(f"/proc/{child}/exe").exists() for child in children)
    assert not json.loads((tmp_path / "bench.json").read_text())["complete"]


def _children(parent: int) -> list[int]:
    """Processes that are steps: those that lead a session of their own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[3] == path.parent.name:
            found.append(int(path.parent.name))
    return found
