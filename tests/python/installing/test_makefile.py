"""Which torch `make` installs and tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

PIP = """#!/bin/sh
echo "pip $*"
for argument; do case $argument in torch*) echo "${argument#torch==}" > "${0%/bin/pip}/torch";; esac; done
"""
PYTHON = """#!/bin/sh
case $* in *importlib.metadata*) cat "${0%/bin/python}/torch" 2>/dev/null;; esac
"""


def test_each_torch_that_is_named_has_an_environment_of_its_own(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make")
    for name in ("Makefile", "CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("csrc", "tests"):
        (tmp_path / folder).mkdir(parents=True)
    version = f"py{sys.version_info[0]}.{sys.version_info[1]}"
    for environment in (".venv", ".venv-torch-2.14.1", ".venv-torch", f".venv-torch-2.14.1-{version}"):
        (tmp_path / environment / "bin").mkdir(parents=True)
        (tmp_path / environment / "stamps").mkdir()
        (tmp_path / environment / "stamps/venv").touch()
        for name, text in (("pip", PIP), ("python", PYTHON)):
            (tmp_path / environment / "bin" / name).write_text(text)
            (tmp_path / environment / "bin" / name).chmod(0o755)

    def setup(*named: str) -> tuple[list[str], list[str]]:
        """What was installed of torch, and the folders that the package was built in."""
        clean = {
            name: value
            for name, value in os.environ.items()
            if name not in ("TORCH", "PYTHON", "MAKEFLAGS", "MAKELEVEL")
        }
        done = subprocess.run(
            [make, "setup", *named], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        asked = [line.split() for line in done.stdout.splitlines() if line.startswith("pip ")]
        folders = [word.partition("build-dir=")[2] for words in asked for word in words if "build-dir=" in word]
        return [words[-1] for words in asked if words[-1].startswith("torch")], folders

    assert setup() == (["torch==2.13.0"], ["build/package"])  # there is none
    assert setup() == ([], [])
    assert setup("TORCH=torch==2.14.1") == (["torch==2.14.1"], ["build/package-torch-2.14.1"])
    assert setup("TORCH=torch==2.14.1") == ([], [])
    assert setup("TORCH=torch==2.13.0") == ([], [])  # which is that of no name
    assert setup("TORCH=torch") == (["torch"], ["build/package-torch"])
    of_python = setup("TORCH=torch==2.14.1", f"PYTHON={sys.executable}")
    assert of_python == (["torch==2.14.1"], [f"build/package-torch-2.14.1-{version}"])
    (tmp_path / ".venv/torch").write_text("2.15.0\n")  # by hand: it stays
    assert setup() == ([], ["build/package"])
