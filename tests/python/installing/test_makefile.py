"""Which torch `make` installs and tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

PIP = """#!/bin/sh
echo "pip $*"
for argument; do case $argument in torch==*) echo "${argument#torch==}" > torch;; esac; done
"""
PYTHON = """#!/bin/sh
case $* in *importlib.metadata*) cat torch 2>/dev/null;; esac
"""


def test_make_takes_the_torch_that_is_named(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make")
    for name in ("Makefile", "CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("csrc", "tests", ".venv/bin", ".venv/stamps"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".venv/stamps/venv").touch()
    for name, text in (("pip", PIP), ("python", PYTHON)):
        (tmp_path / ".venv/bin" / name).write_text(text)
        (tmp_path / ".venv/bin" / name).chmod(0o755)

    def setup(*named: str) -> tuple[list[str], bool]:
        """What was installed of torch, and whether the package was built."""
        clean = {name: value for name, value in os.environ.items() if name not in ("TORCH", "MAKEFLAGS", "MAKELEVEL")}
        done = subprocess.run(
            [make, "setup", *named], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        asked = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("pip ")]
        return [each for each in asked if each.startswith("torch")], "." in asked

    assert setup() == (["torch==2.13.0"], True)  # there is none
    assert setup() == ([], False)
    assert setup("TORCH=torch==2.14.1") == (["torch==2.14.1"], True)
    assert setup("TORCH=torch==2.14.1") == (["torch==2.14.1"], False)  # pip finds it there
    assert setup() == ([], False)  # whichever is there stays
    (tmp_path / "torch").write_text("2.15.0\n")  # by hand
    assert setup() == ([], True)
