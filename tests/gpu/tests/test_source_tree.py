"""The copy of the sources that the tests run in, elsewhere than beside the package."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import source_tree

ROOT = Path(__file__).resolve().parents[3]


def test_it_has_each_file_of_the_project(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files", *source_tree.FOLDERS], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is no clone")
    files = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    tree = source_tree.copy_without_package(ROOT, tmp_path / "tree")
    assert not (tree / "mempool").exists()
    missing = {name for name in files if not (tree / name).exists()}
    assert {name for name in missing if not name.startswith("benchmarks/results/")} == set()
