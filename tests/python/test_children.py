"""Every kind of child has mempool, under one limit: those of Python, of torch, of launchers and of servers."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

CHILDREN = Path(__file__).with_name("children")
LIMIT = 3 << 30
BLOCK = 64 << 20
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("MEMPOOL")}
RUN = ("-m", "mempool", "run", "--limit", "3GiB", "--json")


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


# The arguments of python, and how many children they start. They end by themselves.
LAUNCHED = {
    "multiprocessing": ((str(CHILDREN / "of_multiprocessing.py"),), 11),
    "torchrun": (
        ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(CHILDREN / "work.py")),
        2,
    ),
    "joblib": ((str(CHILDREN / "of_joblib.py"),), 2),
    "ray": ((str(CHILDREN / "of_ray.py"),), 2),
}
MARKS = {"joblib": [needs("joblib")], "ray": [needs("ray")]}
# These serve until they are stopped.
SERVED = {
    "uvicorn": ("-m", "uvicorn", "app:asgi", "--workers", "2", "--port", "0", "--lifespan", "off"),
    "gunicorn": ("-m", "gunicorn", "app:wsgi", "--workers", "2", "--bind", "127.0.0.1:0"),
}


def environment(out: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(CHILDREN), os.environ.get("PYTHONPATH"))))
    return {**CLEAN, "OUT": str(out), "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def said(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def serve(arguments: tuple[str, ...], count: int, env: dict[str, str], out: Path) -> None:
    """Runs a server until so many workers have spoken; stops it by SIGTERM."""
    server = subprocess.Popen([sys.executable, *arguments], env=env, stderr=subprocess.PIPE, text=True, cwd=out.parent)
    try:
        deadline = time.monotonic() + 120
        while len(said(out)) < count and time.monotonic() < deadline and server.poll() is None:
            time.sleep(0.05)
    finally:
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=60)
    assert len(said(out)) >= count, errors


def check_summary(summary: Path, children: list[dict[str, Any]]) -> None:
    """Every child is in it, and the peak of their sum is no sum of peaks."""
    shared = json.loads(summary.read_text())["processes"]["cpu"]
    assert shared["limit"] == LIMIT
    peaks = {row["pid"]: row["peak_held"] for row in shared["processes"]}
    assert all(peaks[child["pid"]] >= BLOCK for child in children), (peaks, children)
    assert max(peaks.values()) <= shared["peak_held"] <= min(LIMIT, sum(peaks.values()))


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, [])) for name in LAUNCHED])
def test_children_of_a_run_share_its_limit(name: str, tmp_path: Path) -> None:
    arguments, count = LAUNCHED[name]
    out, summary = tmp_path / "out", tmp_path / "summary.json"
    command = [sys.executable, *RUN, "--summary", str(summary), *arguments]
    done = subprocess.run(command, env=environment(out), capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    children = said(out)
    assert [child["limit"] for child in children] == [LIMIT] * count, done.stderr
    check_summary(summary, children)


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in SERVED])
def test_workers_of_a_server_share_the_limit_of_its_run(name: str, tmp_path: Path) -> None:
    out, summary = tmp_path / "out", tmp_path / "summary.json"
    serve((*RUN, "--summary", str(summary), *SERVED[name]), 2, environment(out), out)
    assert {child["limit"] for child in said(out)} == {LIMIT}
    check_summary(summary, said(out))


@needs("gunicorn")
def test_workers_of_a_parent_without_torch_meet_in_the_ledger_that_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    name = f"test-{os.getpid()}"
    serve(SERVED["gunicorn"], 2, environment(out, MEMPOOL_ENABLE="cpu=3GiB", MEMPOOL_LEDGER=name), out)
    assert {child["limit"] for child in said(out)} == {LIMIT}


def test_children_have_it_by_the_environment_alone(tmp_path: Path) -> None:
    arguments, count = LAUNCHED["multiprocessing"]
    out = tmp_path / "out"
    env = environment(out, MEMPOOL_ENABLE="cpu=3GiB")
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=240)
    assert [child["limit"] for child in said(out)] == [LIMIT] * count, done.stderr


def test_children_of_a_run_can_be_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = "import subprocess, sys; subprocess.run([sys.executable, sys.argv[1]], check=True)"
    command = [*RUN, "--no-children", "-c", program, str(CHILDREN / "work.py")]
    done = subprocess.run([sys.executable, *command], env=environment(out), capture_output=True, text=True, timeout=240)
    assert [child["limit"] for child in said(out)] == [None], done.stderr
    assert json.loads(done.stderr)["processes"] == {}
