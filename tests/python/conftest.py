"""Fixtures of all tests: mempool enabled, invariants checked after each test, commands and processes."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# These are tests of the CPU: enable() would take a GPU too, and every call would have to name its device.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch

import mempool
from mempool import cli
from mempool._device_cpu import cpu

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def enabled() -> Iterator[None]:
    """mempool under the test; nothing of it left behind."""
    mempool.enable("cpu")
    yield
    assert mempool.current_pool() is None
    mempool.record_history(False, "cpu")
    mempool.set_limit(None, "cpu")
    mempool.set_limit(None, "cpu", soft=True)
    mempool.disable()


@pytest.fixture
def live_bytes(enabled: None) -> Callable[[], int]:
    """Bytes that are allocated beyond what was at the start of the test."""
    gc.collect()  # what tests before have left
    start = mempool.memory_allocated("cpu")
    return lambda: mempool.memory_allocated("cpu") - start


@pytest.fixture(autouse=True)
def invariants() -> Iterator[None]:
    """Whatever a test did, the allocator is whole after it."""
    yield
    assert cpu().check_invariants() == ""


@pytest.fixture(autouse=True)
def wide_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command prints is as wide as its contents: they hold paths, and the checkout may lie anywhere."""
    monkeypatch.setenv("COLUMNS", "10000")


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """torch.compile gives a function up that it has compiled eight times: tests of all files count together."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script in a fresh interpreter."""

    def run(code: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MEMPOOL", "PYTORCH_", "THP_"))}
        return subprocess.run(
            [sys.executable, "-c", code, *args], env={**clean, **env}, capture_output=True, text=True, timeout=240
        )

    return run


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command line in this process: importing torch again would take seconds."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["mempool", *arguments])
        capsys.readouterr()
        status: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, status, out, err)

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
