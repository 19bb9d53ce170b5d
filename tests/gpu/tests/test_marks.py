"""On a GPU, tests that no GPU can play are skipped by their marks. The stand-in is that GPU here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import control
import pytest

ROOT = Path(__file__).resolve().parents[3]
LIBRARIES = Path(os.environ.get("CUDA_STANDIN_LIB", ROOT / "build" / "cuda_standin" / "lib"))
TESTS = """
import pytest

def test_with_controls(standin): raise AssertionError
@pytest.mark.stand_in
def test_of_another_machine(): raise AssertionError
@pytest.mark.gpus(3)
def test_of_three(): raise AssertionError
@pytest.mark.gpus(2)
def test_of_two(run_on_device): assert run_on_device("import torch; print(torch.cuda.device_count())") == "2\\n"
@pytest.mark.gpus(0)
def test_of_none(run_on_device): assert run_on_device("import torch; print(torch.cuda.is_available())") == "False\\n"
def test_of_one(run_on_device): assert run_on_device("import torch; print(torch.cuda.device_count())") == "1\\n"
"""


@pytest.mark.skipif(not LIBRARIES.is_dir(), reason="no stand-in: run `make standin`")
def test_what_no_gpu_can_play_is_skipped_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests/cuda/conftest.py").read_text())
    (tmp_path / "test_planted.py").write_text(TESTS)
    places = [ROOT / "tests" / "cuda_standin", ROOT / "tests" / "gpu"]
    command = [Path(control.__file__).with_name("run"), sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml"]
    command += [f"--rootdir={tmp_path}", "-p", "no:cacheprovider", "-rs", tmp_path]
    environment = {**os.environ, "MEMPOOL_TEST_DEVICE": "real", "CUDA_STANDIN_DEVICES": "2"}
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, places), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed, 3 skipped" in done.stdout
    reasons = re.findall(r"^SKIPPED \[1\] .*?: (.*)$", done.stdout, re.MULTILINE)
    assert reasons == [
        "needs the controls of the stand-in",
        "only the stand-in plays that machine",
        "needs 3 GPUs, and 2 can be seen",
    ]
