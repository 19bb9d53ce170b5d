from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mempool

SCRIPT = """
import sys, torch, mempool
assert __name__ == "__main__"
assert sys.argv[1:] == ["--flag", "value", "-x"], sys.argv
import neighbour
x = torch.ones(1 << 20)
print(mempool.memory_allocated("cpu"), neighbour.name)
sys.exit(3)
"""


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mempool", *arguments], capture_output=True, text=True, timeout=240, cwd=cwd
    )


def test_run_swaps_the_allocator_under_an_unchanged_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "neighbour.py").write_text("name = 'found'")
    snapshot = tmp_path / "end.pickle"
    done = command("run", "--snapshot", str(snapshot), str(tmp_path / "script.py"), "--flag", "value", "-x")
    assert done.returncode == 3, done.stderr
    assert done.stdout.split() == ["4194304", "found"]
    assert "4.00 MiB" in done.stderr
    assert "peak" in done.stderr
    assert mempool.load_snapshot(snapshot)["device_traces"][0]


def test_run_of_a_module_and_of_a_failing_script(tmp_path: Path) -> None:
    (tmp_path / "tool.py").write_text("import torch; torch.ones(1 << 26); print('unreachable')")
    done = command("run", "--limit", "64MiB", "-m", "tool", cwd=tmp_path)
    assert done.returncode == 1
    assert "unreachable" not in done.stdout
    assert "OutOfMemoryError" in done.stderr
    assert "out-of-memory errors 1" in done.stderr


def test_run_leaves_the_script_as_python_would(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, sys, signal\n"
        "os.chdir('/')\n"
        "assert os.path.isabs(__file__) and os.path.exists(__file__), __file__\n"
        "assert sys.path[0] == os.path.dirname(__file__), sys.path\n"
        "assert not any(p.endswith('/bin') for p in sys.path), sys.path\n"
        "if os.fork() == 0: sys.exit(0)\n"
        "os.wait()\n"
        "raise KeyError('its own')\n"
    )
    done = command("run", "--snapshot", "end.pickle", "script.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "KeyError: 'its own'" in done.stderr
    assert done.stderr.count("CPU memory of this run") == 1
    assert (tmp_path / "end.pickle").exists()


def test_a_snapshot_that_cannot_be_written_is_found_before_the_script_runs(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("print('ran')")
    done = command("run", "--snapshot", "/no/such/folder/x.pickle", str(tmp_path / "script.py"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "ran" not in done.stdout


def test_names_are_not_read_as_markup(enabled: None, tmp_path: Path) -> None:
    pool = mempool.MemoryPool("a[/b] [bold]")
    with mempool.use_pool(pool):
        kept = torch.ones(1000)
    mempool.dump_snapshot(tmp_path / "s.pickle")
    done = command("stats", str(tmp_path / "s.pickle"))
    assert "a[/b] [bold]" in done.stdout, done.stderr
    del kept


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "/no/such/script.py"), "there is no file '/no/such/script.py'"),
        (("run", "--limit", "12 GiBs", __file__), "'GiBs'"),
        (("stats", "/no/such/file"), "cannot read '/no/such/file'"),
        (("stats", __file__), "not a memory snapshot"),
        (("frobnicate",), "No such command"),
    ],
)
def test_bad_input_gets_one_sentence(arguments: tuple[str, ...], words: str) -> None:
    done = command(*arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_stats_of_a_snapshot(enabled: None, tmp_path: Path) -> None:
    mempool.record_history(True)
    pool = mempool.MemoryPool("requests")
    with mempool.use_pool(pool):
        kept = torch.ones(3 << 20)
    path = tmp_path / "snapshot.pickle"
    mempool.dump_snapshot(path)
    done = command("stats", str(path))
    assert done.returncode == 0, done.stderr
    assert "requests" in done.stdout
    assert "12.00 MiB" in done.stdout
    assert "test_cli.py" in done.stdout.replace("\n", "")
    del kept


def test_help_version_and_options() -> None:
    assert "run" in command("--help").stdout
    assert mempool.__version__ in command("--version").stdout
    assert "thread_cache_bytes" in command("options").stdout
