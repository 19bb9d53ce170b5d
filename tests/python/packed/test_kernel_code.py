"""The compiled kernels: their inner loops keep all sums in registers."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

DOT = re.compile(r"\t(vpdpbusd|vpmaddwd)\s")
STACK = re.compile(r"[(,]%r[sb]p[,)]")
VECTOR = re.compile(r"%[xyz]mm")

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("objdump") is None, reason="needs x86-64 and objdump"
)


def _library() -> Path:
    """What was built last: the installed one has no names of functions."""
    root = Path(__file__).resolve().parents[3]
    built = sorted(root.glob("build/cp*/libmempool.so"), key=lambda path: path.stat().st_mtime)
    if not built:
        pytest.skip("needs the build folder that the package was installed from")
    return built[-1]


def _loops() -> dict[str, list[str]]:
    """Of each kernel that multiplies a tile, what lies between its first and its last product."""
    text = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", str(_library())], capture_output=True, text=True, check=True
    ).stdout
    loops = {}
    for function in text.split("\n\n"):
        name = function.split("\n", 1)[0]
        if not re.search(r"(dense|bitmap|chunk|block)_tile<", name):
            continue
        lines = function.splitlines()
        products = [i for i, line in enumerate(lines) if DOT.search(line)]
        if products:
            loops[name] = lines[products[0] : products[-1]]
    return loops


def test_no_sum_leaves_its_register() -> None:
    loops = _loops()
    assert len(loops) >= 20, sorted(loops)
    for name, lines in loops.items():
        on_stack = [line for line in lines if VECTOR.search(line) and STACK.search(line)]
        # Where a bitmap is read twice, the sums of the first half are stored before the second is begun.
        loads = [line for line in on_stack if not re.search(r"%[xyz]mm\d+,[^,]*\(%r[sb]p", line)]
        assert not loads, (name, loads[:3])
        if "bitmap_tile" not in name:
            assert not on_stack, (name, on_stack[:3])
