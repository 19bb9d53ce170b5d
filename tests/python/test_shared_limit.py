"""One limit for several processes: who sets it, who is refused by it, and what they are told."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import mempool
from mempool.doctor import check_environment
from mempool.ledger import tell_children

Python = Callable[..., "subprocess.CompletedProcess[str]"]
MIB = 1 << 20

REFUSED = """
import os, torch, mempool
mempool.enable("cpu", limit="300MiB", shared=True)
block = torch.empty(200 << 20, dtype=torch.uint8)
if os.fork() == 0:
    other = torch.empty(64 << 20, dtype=torch.uint8)
    try:
        torch.empty(64 << 20, dtype=torch.uint8)
    except MemoryError:
        raise
    except torch.OutOfMemoryError as error:
        info = mempool.oom_info(error)
        print(info["reason"], info["limit"] >> 20, info["held"] >> 20, info["held_by_all"] >> 20, flush=True)
    del other
    mempool.trim()
    torch.empty(96 << 20, dtype=torch.uint8)
    os._exit(0)
os.wait()
report = mempool.shared_report()
print([(row.is_alive, row.held >> 20) for row in report.processes], report.peak_held >> 20)
torch.empty(100 << 20, dtype=torch.uint8)
"""


def test_a_child_is_refused_for_what_its_parent_holds(python: Python) -> None:
    done = python(REFUSED)
    assert done.returncode == 0, done.stderr
    refusal, report = done.stdout.splitlines()
    assert refusal == "shared_limit 300 264 264"  # a child's own figures have what it was forked with
    assert report == "[(True, 200), (False, 0)] 296"


SECOND = """
import torch, mempool
try:
    print(mempool.enable("cpu", limit={limit!r}, shared=True), mempool.get_limit(shared=True) >> 20)
except mempool.ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("300MiB", "{'cpu': True} 300"),
        ("75%", "{'cpu': True} 300"),  # it was turned into bytes by the first
        (None, "{'cpu': True} 300"),
        ("200MiB", "were given a limit of 314572800 bytes for device cpu already, not 209715200"),
    ],
)
def test_the_first_process_sets_the_limit(python: Python, limit: str | None, said: str) -> None:
    first = f"""
import subprocess, sys, mempool
mempool.enable("cpu", limit="300MiB", shared=True)
import os
del os.environ["MEMPOOL_ENABLE"]
subprocess.run([sys.executable, "-c", {SECOND.format(limit=limit)!r}])
"""
    done = python(first)
    assert said in done.stdout, done.stderr


def test_it_can_be_changed_for_all(python: Python) -> None:
    done = python("""
import torch, mempool
mempool.enable("cpu", shared=True)
print(mempool.get_limit(shared=True))
block = torch.empty(100 << 20, dtype=torch.uint8)
mempool.set_limit("150MiB", shared=True)
print(mempool.get_limit(shared=True) >> 20, mempool.get_limit())
try:
    mempool.set_limit("50MiB", shared=True)
except mempool.ConfigError as error:
    print(error)
mempool.set_limit(None, shared=True)
print(mempool.get_limit(shared=True))
""")
    assert done.stdout.splitlines() == [
        "None",
        "150 None",
        "a shared limit of 50.00 MiB for device cpu is below the 104857600 bytes that all processes of the ledger "
        "hold, even after a trim of this one: free tensors first.",
        "None",
    ], done.stderr


CHANGED = """
import os, subprocess, sys, torch, mempool
mempool.enable("cpu", limit="300MiB", shared=True)
child = [sys.executable, "-c", "import torch, mempool; print(mempool.get_limit('cpu', shared=True))"]
for limit in ("200MiB", None, "400MiB"):
    mempool.set_limit(limit, shared=True)
    print(limit, subprocess.run(child, check=True, capture_output=True, text=True).stdout.strip())
"""


def test_children_that_start_after_a_change_have_it_too(python: Python) -> None:
    done = python(CHANGED)
    assert done.stdout.splitlines() == [f"200MiB {200 * MIB}", "None None", f"400MiB {400 * MIB}"], done.stderr


def test_a_program_that_replaces_itself_is_counted_once(python: Python) -> None:
    done = python("""
import os, sys, torch, mempool
mempool.enable("cpu", limit="300MiB", shared=True)
block = torch.empty(200 << 20, dtype=torch.uint8)
again = "import torch; torch.empty(250 << 20, dtype=torch.uint8); import mempool; print(mempool.shared_report().held)"
os.execv(sys.executable, [sys.executable, "-c", again])
""")
    assert done.returncode == 0, done.stderr


def test_a_child_that_has_taken_nothing_keeps_the_ledger(python: Python, tmp_path: Path) -> None:
    done = python(
        """
import os, sys, time, torch, mempool
mempool.enable("cpu", limit="300MiB", shared=True)
here, there = os.pipe()
if os.fork() == 0:
    os.close(there)
    os.read(here, 1)  # the parent has ended
    folder = os.environ["XDG_RUNTIME_DIR"] + f"/mempool-{os.geteuid()}"
    there = [f"{folder}/{name}" for name in os.listdir(folder)]
    print(there == [os.environ["MEMPOOL_LEDGER"]], mempool.get_limit("cpu", shared=True), flush=True)
    os._exit(0)
""",
        XDG_RUNTIME_DIR=str(tmp_path),
    )
    assert done.stdout == f"True {300 * MIB}\n", done.stderr


def test_a_child_joins_its_parents_ledger_wherever_its_own_would_be(python: Python, tmp_path: Path) -> None:
    done = python(
        """
import os, subprocess, sys, mempool
mempool.enable("cpu", limit="300MiB", shared=True)
child = "import mempool; print(mempool.get_limit('cpu', shared=True), len(mempool.shared_report().processes))"
os.environ["XDG_RUNTIME_DIR"] = os.environ["HOME"]
subprocess.run([sys.executable, "-c", "import torch; block = torch.ones(1 << 20);" + child], check=True)
""",
        XDG_RUNTIME_DIR=str(tmp_path),
    )
    assert done.stdout == f"{300 * MIB} 1\n", done.stderr


def test_a_child_that_has_taken_nothing_is_refused_by_the_limit(python: Python, tmp_path: Path) -> None:
    done = python(
        """
import os, torch, mempool
mempool.enable("cpu", limit="64MiB", shared=True)
pid = os.fork()
if pid == 0:
    try:
        torch.empty(128 << 20, dtype=torch.uint8)
    except mempool.OutOfMemoryError as error:
        info = mempool.oom_info(error)
        print(info["reason"], info["limit"] >> 20, info["held_by_all"] >> 20, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
""",
        XDG_RUNTIME_DIR=str(tmp_path),
    )
    assert done.stdout == "shared_limit 64 0\n", done.stderr


@pytest.mark.parametrize("use", ["block = torch.ones(1 << 20)", "mempool.shared_report()"])
def test_a_ledger_in_use_does_not_grow_old(python: Python, tmp_path: Path, use: str) -> None:
    done = python(
        f"""
import os, subprocess, sys, time, mempool
mempool.enable("cpu", shared=True)
path = os.environ["MEMPOOL_LEDGER"]
os.utime(path, (1, 1))
subprocess.run([sys.executable, "-c", "import torch, mempool; {use}"], check=True)
print(time.time() - os.stat(path).st_mtime < 3600)
""",
        XDG_RUNTIME_DIR=str(tmp_path),
        MEMPOOL_CONF="decay_ms:never",
    )
    assert done.stdout == "True\n", done.stderr


def test_the_path_of_a_named_ledger_is_told_to_children(python: Python, tmp_path: Path) -> None:
    program = "import os, torch; print(os.environ['MEMPOOL_LEDGER'].endswith('/night') or os.environ['MEMPOOL_LEDGER'])"
    named = {"MEMPOOL_LEDGER": "night", "XDG_RUNTIME_DIR": str(tmp_path)}
    done = python(program, MEMPOOL_ENABLE="cpu=1GiB", **named)
    assert done.stdout == "True\n", done.stderr
    done = python(program, MEMPOOL_ENABLE="cpu", MEMPOOL_CONF="limt:1", **named)
    assert done.stdout == "night\n", done.stderr  # what could not be enabled has changed nothing


def test_a_run_that_is_switched_off_says_that_there_is_no_limit(python: Python) -> None:
    run = "import sys, mempool.cli; sys.argv = ['mempool', 'run', *sys.argv[1:]]; mempool.cli.main()"
    done = python(run, "--limit", "1GiB", "-c", "print('it ran')", MEMPOOL_DISABLE="1")
    assert done.stdout == "it ran\n"
    assert "MEMPOOL_DISABLE=1 is set: the script runs without mempool, and without the limit" in done.stderr


def test_a_name_that_is_cut_is_still_text(python: Python, tmp_path: Path) -> None:
    script = tmp_path / ("数据处理与模型训练脚本的最终版本" + ".py")
    script.write_text(
        "import torch, mempool; mempool.enable('cpu', shared=True); block = torch.ones(1 << 20);"
        "print(ascii(mempool.shared_report().processes[0].name))"
    )
    done = python("import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])", str(script))
    assert done.stdout.startswith("'\\u6570"), done.stderr


def test_a_run_without_a_limit_needs_no_ledger(python: Python, tmp_path: Path) -> None:
    (tmp_path / f"mempool-{os.geteuid()}").write_text("no folder")
    run = "import sys, mempool.cli; sys.argv = ['mempool', 'run', *sys.argv[1:]]; mempool.cli.main()"
    arguments = ("-c", "print('it ran')")
    done = python(run, *arguments, XDG_RUNTIME_DIR=str(tmp_path))
    assert done.stdout == "it ran\n"
    assert "run without mempool: MEMPOOL_LEDGER=" in done.stderr
    done = python(run, "--limit", "1GiB", *arguments, XDG_RUNTIME_DIR=str(tmp_path))
    assert done.returncode != 0
    assert done.stdout == ""


def test_without_a_ledger_there_is_no_shared_limit(enabled: None) -> None:
    for call in (
        lambda: mempool.shared_report(),
        lambda: mempool.get_limit(shared=True),
        lambda: mempool.set_limit("1GiB", shared=True),
    ):
        with pytest.raises(mempool.ConfigError, match=r"device cpu is in no shared ledger: call .*shared=True"):
            call()
    with pytest.raises(mempool.ConfigError, match="soft limit"):
        mempool.set_limit("1GiB", "cpu", soft=True, shared=True)
    with pytest.raises(mempool.ConfigError, match="soft limit"):
        mempool.get_limit("cpu", soft=True, shared=True)


@pytest.mark.parametrize(
    ("name", "why"), [("a/b", "'a/b' is no name"), ("old", "another version"), ("open", "not this user's alone")]
)
def test_a_ledger_that_cannot_be_joined(python: Python, tmp_path: Path, name: str, why: str) -> None:
    folder = tmp_path / f"mempool-{os.geteuid()}"
    folder.mkdir(mode=0o700)
    for file, mode in (("old", 0o600), ("open", 0o644)):
        (folder / file).write_bytes(b"x" * 64)
        (folder / file).chmod(mode)
    program = "import torch; print('it ran')"
    env = {"MEMPOOL_LEDGER": name, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = python(program, MEMPOOL_ENABLE="cpu=1GiB", **env)
    assert done.returncode != 0
    assert why in next(line for line in done.stderr.splitlines() if line.startswith("ImportError: "))
    done = python(program, MEMPOOL_ENABLE="cpu", **env)
    assert done.stdout == "it ran\n"
    assert done.stderr.count("Warning") == 1
    assert why in done.stderr


def test_the_name_goes_with_the_last_process(python: Python, tmp_path: Path) -> None:
    program = "import mempool, os; mempool.enable('cpu', shared=True); print(os.listdir(os.environ['XDG_RUNTIME_DIR']))"
    done = python(program, XDG_RUNTIME_DIR=str(tmp_path))
    assert done.stdout == f"['mempool-{os.geteuid()}']\n", done.stderr
    assert list((tmp_path / f"mempool-{os.geteuid()}").iterdir()) == []


@pytest.mark.parametrize(
    ("before", "limit", "after"),
    [
        ("", "1GiB", "cpu=1GiB"),
        ("", None, "cpu"),
        ("cpu=2GiB,cuda", None, "cpu=2GiB,cuda"),
        ("cpu=2GiB,cuda", "1GiB", "cuda,cpu=1GiB"),
        ("cuda=50%", "1GiB", "cuda=50%,cpu=1GiB"),
    ],
)
def test_children_are_told(monkeypatch: pytest.MonkeyPatch, before: str, limit: str | None, after: str) -> None:
    monkeypatch.setenv("MEMPOOL_ENABLE", before)
    monkeypatch.delenv("TORCH_DEVICE_BACKEND_AUTOLOAD", raising=False)
    tell_children("cpu", limit)
    assert os.environ["MEMPOOL_ENABLE"] == after


def test_a_run_with_a_limit_wants_children_that_keep_it(python: Python, tmp_path: Path) -> None:
    run = "import sys, mempool.cli; sys.argv = ['mempool', 'run', *sys.argv[1:]]; mempool.cli.main()"
    arguments = ("-c", "print('it ran')")
    off = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = python(run, "--limit", "1GiB", *arguments, **off)
    assert done.returncode == 2
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0 is set" in done.stderr
    assert "it ran" not in done.stdout
    done = python(run, "--limit", "1GiB", "--no-children", *arguments, **off)
    assert done.stdout == "it ran\n", done.stderr
    done = python(run, "--json", *arguments, **off)
    assert "without mempool" in json.loads(done.stderr)["children_problem"]


def test_the_doctor_says_whose_limit_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMPOOL_LEDGER", raising=False)
    monkeypatch.setenv("MEMPOOL_ENABLE", "cpu=75%")
    assert "each process's own" in check_environment()[0].detail
    monkeypatch.setenv("MEMPOOL_LEDGER", "web")
    assert "one limit for all processes of ledger web" in check_environment()[0].detail
