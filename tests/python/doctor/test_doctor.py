"""``mempool doctor``: facts and self-checks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mempool import doctor


def test_the_doctor_examines_this_machine(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "mempool", "doctor", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report["passed"]
    assert report["complete"]
    assert report["facts"]["usable_memory_bytes"] > 0
    assert {check["device"] for check in report["checks"]} == {"cpu"}
    assert all(check["passed"] for check in report["checks"])
    assert "self-checks" in done.stdout


def test_without_a_gpu_the_doctor_says_so_and_ends_well(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "mempool", "doctor", "--gpu", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no GPU was examined" in done.stdout
    assert json.loads(out.read_text())["gpu"]["problem"]


def test_what_the_environment_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MEMPOOL_ENABLE", "MEMPOOL_DISABLE", "TORCH_DEVICE_BACKEND_AUTOLOAD"):
        monkeypatch.delenv(name, raising=False)
    assert doctor.check_environment() == []
    monkeypatch.setenv("MEMPOOL_ENABLE", "cpu=75%")
    (check,) = doctor.check_environment()
    assert check.passed
    assert "each process's own" in check.detail
    for name, value in (("TORCH_DEVICE_BACKEND_AUTOLOAD", "0"), ("MEMPOOL_DISABLE", "1")):
        monkeypatch.setenv(name, value)
        (check,) = doctor.check_environment()
        assert not check.passed
        assert f"{name}={value}" in check.detail


def test_a_device_that_is_not_there_fails_its_checks() -> None:
    checks = list(doctor.check_device("cuda:63"))
    assert checks
    assert not all(check.passed for check in checks)


def test_a_report_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    for out in (tmp_path / "no" / "report.json", tmp_path, "/dev/full/x"):
        command = [sys.executable, "-m", "mempool", "doctor", "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"cannot write '{out}'" in done.stderr
        assert done.stdout == ""


def test_the_report_on_standard_output(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mempool", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"]


def test_what_was_found_is_in_the_report_when_the_doctor_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    script = (
        "import os, signal, sys, mempool.doctor\n"
        "from mempool.cli import main\n"
        "def killed(device):\n"
        "    yield mempool.doctor.Check(device, 'contents survive', True, 'well')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "mempool.doctor.check_device = killed\n"
        f"sys.argv = ['mempool', 'doctor', '--out', {str(out)!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -9
    report = json.loads(out.read_text())
    assert not report["complete"]
    assert report["passed"] is None
    assert [check["name"] for check in report["checks"]] == ["contents survive"]
