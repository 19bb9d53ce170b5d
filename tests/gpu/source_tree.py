"""A copy of the sources without the package.

Python imports from the working directory, and the wheel is what is tested.
"""

from __future__ import annotations

import shutil
from pathlib import Path

FOLDERS = ("benchmarks", "csrc", "docs", "examples", "tests")
_MADE = shutil.ignore_patterns("__pycache__", "*.so", "results", ".*")


def copy_without_package(root: Path, tree: Path) -> Path:
    """Makes `tree` anew. Sources are those that lie there: git may not be on this machine."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for name in FOLDERS:
        shutil.copytree(root / name, tree / name, ignore=_MADE)
    for path in root.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, tree / path.name)
    return tree
