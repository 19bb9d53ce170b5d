"""The order of folders: a file imports files of lower folders and of its own, without a cycle. Needs no build.

ARCHITECTURE.md describes the layers. In each list a line sees the lines above it and, of the others of its own line,
nothing. A folder stands for all below it; ``mempool`` for its own modules alone.
"""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CXX = """
common
core/allocator/policy.h
core/streams core/accounts
core/physical_memory.h
core/observe core/pages
core/threads
core/allocator
kernels backend
replay torch
bindings
"""
PYTHON = """
mempool
mempool/packed mempool/traces
mempool/observe mempool/container
mempool/compress
mempool/checkpoint
mempool/data mempool/training mempool/serving
mempool/doctor mempool/demo
mempool/cli
_mempool_autoload.py
"""
# What users import. It imports what it likes, and of us only the last three import it.
FACES = {"mempool/__init__.py", "mempool/__main__.py", "mempool/nn.py", "mempool/ops.py"}
MAY_IMPORT_FACES = {"mempool/doctor", "mempool/demo", "mempool/cli"}
SYSTEM_HEADER = re.compile(
    r"#include <(sys/|linux/|asm/|unistd|pthread|fcntl|dlfcn|sched|signal|cuda|torch|c10|pybind)"
)


def place(path: str, order: str) -> tuple[int, str]:
    ranks = {name: rank for rank, line in enumerate(order.split("\n")) for name in line.split()}
    for parent in (path, *map(str, Path(path).parents)):
        if parent in ranks and (parent != "mempool" or path.count("/") == 1):
            return ranks[parent], parent
    raise AssertionError(f"{path} is in no folder that has a place in the order")


def includes(root: Path) -> dict[str, set[str]]:
    files = [path for path in (root / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".inl", ".cu"}]
    quoted = re.compile(r'#include "([^"]+/[^"]+)"')
    return {str(path.relative_to(root / "csrc")): set(quoted.findall(path.read_text())) for path in files}


def imports(root: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in (root / "mempool").rglob("*.py"):
        names = found.setdefault(str(path.relative_to(root)), set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {file for alias in node.names if (file := file_of(alias.name, root))}
            elif isinstance(node, ast.ImportFrom) and node.module and (whole := file_of(node.module, root)):
                names |= {file_of(f"{node.module}.{alias.name}", root) or whole for alias in node.names}
    return found


def file_of(module: str, root: Path) -> str | None:
    stem = root.joinpath(*module.split("."))
    candidates = (stem.with_suffix(".py"), stem.with_suffix(".pyi"), stem / "__init__.py")
    return next((str(path.relative_to(root)) for path in candidates if path.exists()), None)


def is_face(path: str) -> bool:
    return path in FACES or path.endswith("__init__.py")


def wrong(root: Path) -> list[str]:
    found = []
    for order, edges in ((CXX, includes(root)), (PYTHON, imports(root))):
        places = {file: place(file, order) for file in (*edges, *(b for targets in edges.values() for b in targets))}
        for here, there in ((a, b) for a, targets in edges.items() for b in targets if not is_face(a)):
            (rank, folder), (other_rank, other) = places[here], places[there]
            if there in FACES and folder not in MAY_IMPORT_FACES:
                found.append(f"{here} uses the face {there}")
            elif there not in FACES and folder != other and other_rank >= rank:
                found.append(f"{here} uses {there}, which does not stand below it")
        try:
            graphlib.TopologicalSorter({a: b for a, b in edges.items() if not is_face(a)}).prepare()
        except graphlib.CycleError as error:
            found.append("a circle: " + " uses ".join(error.args[1]))
    for path in (root / "csrc" / "core").rglob("*.[hc]*"):
        if header := SYSTEM_HEADER.search(path.read_text()):
            found.append(f"{path.name} includes a header of the system: {header[0]}")
    return sorted(found)


def test_files_use_what_stands_below_them() -> None:
    assert wrong(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("csrc/core/pages/a.h", '#include "core/threads/thread_cache.h"', "pages/a.h uses core/threads/thread_cache.h"),
        ("csrc/kernels/a.cpp", '#include "backend/b.h"', "kernels/a.cpp uses backend/b.h"),
        ("csrc/core/pages/a.h", "#include <sys/mman.h>", "a.h includes a header of the system"),
        ("csrc/common/a.h", '#include "common/a.h"', "a circle: common/a.h uses common/a.h"),
        ("mempool/pools.py", "from mempool.observe import snapshot", "pools.py uses mempool/observe/snapshot.py"),
        ("mempool/pools.py", "def f():\n    import mempool.nn", "mempool/pools.py uses the face mempool/nn.py"),
        ("mempool/observe/snapshot.py", "from mempool import replay", "snapshot.py uses the face mempool/__init__.py"),
        ("mempool/new/a.py", "import mempool.cli.run", "mempool/new/a.py is in no folder"),
    ],
)
def test_what_is_planted_is_found(tmp_path: Path, file: str, line: str, message: str) -> None:
    for name in ("mempool/__init__.py", "mempool/nn.py", "mempool/observe/snapshot.py", "mempool/observe/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "csrc" / "core").mkdir(parents=True)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(line + "\n")
    try:
        found = wrong(tmp_path)
    except AssertionError as error:
        found = [str(error)]
    assert len(found) == 1
    assert message in found[0]
