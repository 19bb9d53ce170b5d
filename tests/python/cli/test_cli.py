"""The commands of ``mempool`` except ``run`` and ``doctor``: their output, as text and as JSON, and their errors."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mempool
from mempool import cli

Command = Callable[..., "subprocess.CompletedProcess[str]"]

SCRIPT = """
import sys, torch, mempool
assert __name__ == "__main__"
assert sys.argv[1:] == ["--flag", "value", "-x"], sys.argv
import neighbour
x = torch.ones(1 << 20)
print(mempool.memory_allocated("cpu"), neighbour.name)
sys.exit(3)
"""


def process(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mempool", *arguments], capture_output=True, text=True, timeout=240, cwd=cwd
    )


def test_run_swaps_the_allocator_under_an_unchanged_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "neighbour.py").write_text("name = 'found'")
    snapshot = tmp_path / "end.pickle"
    done = process("run", "--snapshot", str(snapshot), str(tmp_path / "script.py"), "--flag", "value", "-x")
    assert done.returncode == 3, done.stderr
    assert done.stdout.split() == ["4194304", "found"]
    assert "4.00 MiB" in done.stderr
    assert "peak" in done.stderr
    assert mempool.load_snapshot(snapshot)["device_traces"][0]


def test_run_of_a_module_and_of_a_failing_script(tmp_path: Path) -> None:
    (tmp_path / "tool.py").write_text("import torch; torch.ones(1 << 26); print('unreachable')")
    done = process("run", "--limit", "64MiB", "-m", "tool", cwd=tmp_path)
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
    done = process("run", "--snapshot", "end.pickle", "script.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "KeyError: 'its own'" in done.stderr
    assert done.stderr.count("CPU memory of this run") == 1
    assert (tmp_path / "end.pickle").exists()


def test_a_snapshot_that_cannot_be_written_is_found_before_the_script_runs(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("print('ran')")
    done = process("run", "--snapshot", "/no/such/folder/x.pickle", str(tmp_path / "script.py"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "ran" not in done.stdout


def test_names_are_not_read_as_markup(enabled: None, tmp_path: Path, command: Command) -> None:
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
def test_bad_input_gets_one_sentence(arguments: tuple[str, ...], words: str, command: Command) -> None:
    done = command(*arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_stats_of_a_snapshot(enabled: None, tmp_path: Path, command: Command) -> None:
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
    assert __file__ in done.stdout
    del kept


def test_help_version_and_options(command: Command) -> None:
    assert "run" in command("--help").stdout
    assert mempool.__version__ in command("--version").stdout
    assert "thread_cache_bytes" in command("options").stdout


def test_options_show_what_they_are_set_to(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.setenv("MEMPOOL_CONF", "limit:3MiB,decay_ms:never,stitch:false")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    rows = {row["key"]: row for row in json.loads(command("options", "--json").stdout)}
    shown = {key: (row["default"], row["value"]) for key, row in rows.items() if row["default"] != row["value"]}
    assert shown == {
        "limit": (None, 3 << 20),
        "decay_ms": (10000, None),
        "stitch": (True, False),
        "huge_pages": (True, False),
    }
    assert rows["thread_cache_bytes"]["value"] == 16 << 20
    assert "3.00 MiB" in command("options").stdout
    monkeypatch.setenv("MEMPOOL_CONF", "limt:3MiB")
    assert "MEMPOOL_CONF: unknown option 'limt'" in command("options").stderr


def odd_snapshot(path: Path, name: str) -> Path:
    frames = [{"filename": "??", "name": "torch::unwind::unwind()", "line": 0}]
    frames += [{"filename": f"/a/{name}.py", "name": name, "line": 3}]
    block = {"address": 16, "size": 4, "state": "active_allocated", "frames": frames, "pool": name}
    traces = [[{"action": "alloc", "addr": 16, "size": 4, "frames": frames}]]
    path.write_bytes(pickle.dumps({"segments": [{"total_size": 8, "blocks": [block]}], "device_traces": traces}))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_a_terminal_cannot_take_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    monkeypatch.setenv("COLUMNS", "200")
    name = "\x1b[31mred\n\udcff\u202e\u00e9"
    done = process("stats", str(odd_snapshot(tmp_path / "s", name)))
    assert done.returncode == 0, done.stderr
    accent = "\u00e9" if encoding == "utf-8" else r"\xe9"
    assert rf"/a/\x1b[31mred\n\udcff\u202e{accent}.py:3" in done.stdout
    assert "\x1b" not in done.stdout
    assert "unwind" not in done.stdout
    done = process("stats", str(tmp_path / "\x1b[31mno"))
    assert r"\x1b[31mno" in done.stderr
    assert "\x1b" not in done.stderr


def test_stats_as_json(tmp_path: Path, command: Command) -> None:
    done = command("stats", "--json", str(odd_snapshot(tmp_path / "s", "f")))
    place = {"name": "/a/f.py:3 f", "blocks": 1, "bytes": 4, "largest": 4}
    result = json.loads(done.stdout)
    assert (result["segments"], result["held_bytes"]) == (1, 8)
    assert result["live"] == {"blocks": 1, "live_bytes": 4, "by_pool": [place | {"name": "f"}], "by_place": [place]}
    assert result["peaks"][0]["bytes"] == 4


def test_what_standard_output_does_not_take() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "mempool", "options", "--json"], stdout=full, stderr=-1, text=True)
    assert done.returncode != 0
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_progress_is_for_terminals_alone(tmp_path: Path, command: Command) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("op,id,bytes\n" + "".join(f"alloc,{i},4096\nfree,{i},\n" for i in range(10_000)))
    arguments = [sys.executable, "-m", "mempool", "replay", str(trace)]
    ours, theirs = pty.openpty()
    done = subprocess.run(arguments, stdout=-1, stderr=theirs, text=True, env=os.environ | {"TERM": "xterm"})
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: all was read
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    assert b"replay" in shown
    assert b"%" in shown
    assert "%" not in done.stdout
    assert command("replay", str(trace)).stderr == ""


def test_every_command_has_json() -> None:
    commands = cli.commands.commands
    assert {"run", "stats", "replay", "options", "doctor", "compress", "demo"} <= commands.keys()
    for name, command in commands.items():
        assert "--json" in [option for parameter in command.params for option in parameter.opts], name
