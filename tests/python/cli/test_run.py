"""``mempool run X`` beside ``python X``: a program finds no difference."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import mempool
from mempool.observe.history import find_peaks

# What a program can see of how it was started. sys.path without the folders of the installation, which both have.
LOOK = """
import os, sys, threading
own = [p for p in sys.path if not p.startswith((sys.prefix, sys.base_prefix)) and "site-packages" not in p]
main = sys.modules["__main__"]
print(threading.active_count(), sys.argv, own[:1], __name__, vars(main) is globals())
print(globals().get("__file__"), globals().get("__package__"), __builtins__)
print(getattr(__spec__, "name", None), type(__loader__).__name__, getattr(__loader__, "__name__", None))
print(sorted(k for k in vars(main) if k.startswith("__")))
"""


Done = subprocess.CompletedProcess

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("MEMPOOL", "PYTHON"))}

# `mempool run` in a child for each line of JSON: importing torch takes seconds, and here it is imported once.
SERVER = """
import json, os, sys
import mempool.cli
requests, answers = (os.fdopen(int(n), mode, 0) for n, mode in zip(sys.argv[1:], ("rb", "wb")))
while line := requests.readline():
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        requests.close(), answers.close()
        os.chdir(request["cwd"])
        for number, name in enumerate(request["files"]):
            os.dup2(os.open(name, os.O_RDWR), number)
        sys.argv = ["mempool", "run", *request["arguments"]]
        mempool.cli.main()
        sys.exit()
    answers.write(b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class Runner:
    """``mempool run`` without the seconds that importing torch takes."""

    def __init__(self) -> None:
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        command = [sys.executable, "-c", SERVER, str(requests), str(answers)]
        self._process = subprocess.Popen(command, pass_fds=(requests, answers), env=ENVIRONMENT)
        os.close(requests)
        os.close(answers)

    def __call__(self, cwd: Path, *arguments: str, stdin: str = "") -> Done[str]:
        files = [cwd.parent / f"{cwd.name}.{name}" for name in ("in", "out", "err")]
        for file, text in zip(files, (stdin, "", ""), strict=True):
            file.write_text(text)
        request = {"cwd": str(cwd), "files": [str(file) for file in files], "arguments": arguments}
        os.write(self._requests, json.dumps(request).encode() + b"\n")
        status = int(os.read(self._answers, 20))
        return Done(arguments, status, files[1].read_text(), files[2].read_text())

    def close(self) -> None:
        os.close(self._requests)
        self._process.wait()
        os.close(self._answers)


@pytest.fixture(scope="module")
def run() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.close()


def python(cwd: Path, *arguments: str, stdin: str = "", **environment: str) -> Done[str]:
    command = [sys.executable, *arguments]
    env = ENVIRONMENT | environment
    return subprocess.run(command, capture_output=True, text=True, input=stdin, cwd=cwd, env=env, timeout=240)


def without_summary(text: str) -> str:
    return text.partition("mempool: CPU memory of this run")[0].strip()


def make_tree(root: Path) -> None:
    (root / "real" / "deep").mkdir(parents=True)
    (root / "links").mkdir()
    (root / "real" / "look.py").write_text(LOOK + "import sibling; print(sibling.name)\n")
    (root / "real" / "sibling.py").write_text("name = 'a sibling'")
    (root / "links" / "look").symlink_to("../real/look.py")
    (root / "links" / "again").symlink_to("look")
    (root / "look.py").write_text(LOOK)
    (root / "script without suffix").write_text(LOOK)
    for folder in ("app", "package"):
        (root / folder).mkdir()
        (root / folder / "__main__.py").write_text(LOOK)
    (root / "package" / "__init__.py").write_text("")
    (root / "package" / "tool.py").write_text(LOOK)
    (root / "empty").mkdir()
    (root / "empty_package").mkdir()
    (root / "empty_package" / "__init__.py").write_text("")
    with zipfile.ZipFile(root / "app.zip", "w") as file:
        file.writestr("__main__.py", LOOK)
    (root / "latin.py").write_bytes(b"# coding: latin-1\nprint(ascii('\xe9'))\n")
    (root / "broken.py").write_text("x = (\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("look.py", "a", "--b", "-c", "-m"),
        ("./look.py",),
        ("links/look",),
        ("links/again", "x"),
        ("script without suffix",),
        ("app", "1"),
        ("./app",),
        ("app.zip", "1"),
        ("-m", "look", "--flag", "-x"),
        ("-mlook", "y"),
        ("-m", "package", "y"),
        ("-m", "package.tool"),
        ("-c", LOOK, "1", "-c"),
        ("-cprint(1)", "y"),
        ("-", "1"),
        ("latin.py",),
        ("broken.py",),
        ("empty",),
        ("-m", "missing"),
        ("-m", "missing.deeper"),
        ("-m", "empty_package"),
        ("-c", "import sys; sys.exit()"),
        ("-c", "import sys; sys.exit(7)"),
        ("-c", "import sys; sys.exit('in words')"),
        ("-c", "raise KeyError('its own')"),
        ("-c", "def f():\n  raise KeyError(1)\ntry: f()\nexcept KeyError: f()"),
        ("-c", "raise KeyboardInterrupt"),
        ("-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM); import time; time.sleep(60)"),
        ("-c", "import os; os._exit(5)"),
        ("-c", "import os, signal; print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGPIPE))"),
        ("-c", "x = (\n"),
        ("-c", "import sys; sys.excepthook = lambda *e: print(e[0], e[2].tb_next); 1 / 0"),
    ],
    ids=lambda arguments: " ".join(arguments)[:60].replace("\n", " "),
)
def test_a_program_finds_no_difference(run: Runner, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    make_tree(tmp_path)
    expected, found = python(tmp_path, *arguments, stdin=LOOK), run(tmp_path, *arguments, stdin=LOOK)
    assert found.stdout == expected.stdout, found.stderr
    assert found.returncode == expected.returncode, found.stderr
    assert without_summary(found.stderr) == expected.stderr.strip()


@pytest.mark.parametrize(
    ("arguments", "flags", "environment"),
    [(("look.py",), ("-P",), {}), (("app",), (), {"PYTHONSAFEPATH": "1"}), (("-m", "package"), ("-I",), {})],
)
@pytest.mark.skipif(sys.version_info < (3, 11), reason="safe paths came with 3.11")
def test_safe_paths_are_kept(
    tmp_path: Path, arguments: tuple[str, ...], flags: tuple[str, ...], environment: dict[str, str]
) -> None:
    make_tree(tmp_path)
    expected = python(tmp_path, *flags, *arguments, **environment)
    found = python(tmp_path, *flags, "-m", "mempool", "run", *arguments, **environment)
    assert found.stdout == expected.stdout, found.stderr
    assert found.returncode == expected.returncode


SPAWN = """
import multiprocessing, pickle
class Thing: pass
def work(x): return x + 1
def same(thing): return type(thing).__module__
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(work, [1, 2]), pool.apply(same, (Thing(),)))
"""

LATE_PICKLES = """
import atexit, pickle, threading, time
class Thing: pass
def late(where):
    if where == "thread":
        threading.main_thread().join()
    print(where, pickle.loads(pickle.dumps(Thing())).__class__ is Thing, flush=True)
atexit.register(late, "exit")
threading.Thread(target=late, args=("thread",)).start()
"""


@pytest.mark.parametrize("code", [SPAWN, LATE_PICKLES], ids=["spawn", "late pickles"])
@pytest.mark.parametrize("how", ["file", "module"])
def test_main_stays_main(run: Runner, tmp_path: Path, code: str, how: str) -> None:
    (tmp_path / "x.py").write_text(code)
    arguments = ("x.py",) if how == "file" else ("-m", "x")
    expected, found = python(tmp_path, *arguments), run(tmp_path, *arguments)
    assert expected.stdout
    assert found.stdout == expected.stdout, found.stderr
    assert found.returncode == expected.returncode == 0
    assert without_summary(found.stderr) == expected.stderr.strip()


SCRIPT = """
import atexit, sys, threading, time, torch
kept = torch.ones(3 << 20)
peak = torch.ones(5 << 20)
del peak
def work():
    threading.main_thread().join()
    print("thread", file=sys.stderr, flush=True)
threading.Thread(target=work).start()
atexit.register(lambda: print("exit handler", file=sys.stderr, flush=True))
"""


def test_the_summary_comes_last(run: Runner, tmp_path: Path) -> None:
    done = run(tmp_path, "-c", SCRIPT)
    assert done.returncode == 0
    assert done.stderr.startswith("thread\nexit handler\nmempool: CPU memory")
    assert done.stderr.count("CPU memory of this run") == 1


def test_a_snapshot_has_what_the_script_held_and_its_peak(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(SCRIPT)
    done = run(tmp_path, "--snapshot", "s.pickle", "--json", "--summary", "summary.json", "x.py")
    assert done.returncode == 0, done.stderr
    snapshot = mempool.load_snapshot(tmp_path / "s.pickle")
    live = [b for s in snapshot["segments"] for b in s["blocks"] if b["state"] == "active_allocated"]
    assert [(b["size"], b["frames"][0]["line"]) for b in live] == [(12 << 20, 3)]
    (peak,) = find_peaks(snapshot)
    assert peak.nbytes == 32 << 20
    assert {(b["size"], b["frames"][0]["line"]) for b in peak.blocks} == {(12 << 20, 3), (20 << 20, 4)}
    assert peak.dropped == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["devices"]["cpu"]["allocated_bytes.all.peak"] == peak.nbytes
    assert summary["snapshot"] == str(tmp_path / "s.pickle")
    assert "memory of this run" not in done.stderr


@pytest.mark.parametrize("where", ["full disk", "closed pipe", "closed pipe, default SIGPIPE", "closed"])
def test_a_summary_that_cannot_be_printed_changes_no_status(tmp_path: Path, where: str) -> None:
    default = "import signal; signal.signal(signal.SIGPIPE, signal.SIG_DFL)" if "default" in where else ""
    command = [sys.executable, "-m", "mempool", "run", "-c", default]
    if where == "full disk":
        with open("/dev/full", "wb") as full:
            assert subprocess.run(command, stderr=full, timeout=240).returncode == 0
    elif where == "closed":
        closing = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
        assert subprocess.run(closing, timeout=240).returncode == 0
    else:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            assert subprocess.run(command, stderr=writer, timeout=240).returncode == 0
        finally:
            os.close(writer)


def test_sigterm_gives_a_summary_while_an_operator_runs(run: Runner, tmp_path: Path) -> None:
    # The main thread is in C until the process ends; the signal comes from another thread.
    code = (
        "import ctypes, os, signal, threading, time, torch\n"
        "kept = torch.ones(3 << 20)\n"
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"  # so that another thread gets it
        "ctypes.CDLL(None).sleep(200)\n"
    )
    done = run(tmp_path, "--snapshot", "s.pickle", "-c", code)
    assert done.returncode == -signal.SIGTERM
    assert "12.00 MiB" in done.stderr
    assert mempool.load_snapshot(tmp_path / "s.pickle")["segments"]


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_signal_that_is_blocked_waits_for_the_script(run: Runner, tmp_path: Path, name: str) -> None:
    code = (
        "import os, signal\n"
        f"signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.{name}}})\n"
        f"os.kill(os.getpid(), signal.{name})\n"
        f"print(signal.sigtimedwait({{signal.{name}}}, 2).si_signo)\n"
    )
    done = run(tmp_path, "-c", code)
    assert (done.returncode, done.stdout) == (0, f"{int(getattr(signal, name))}\n"), done.stderr
    assert done.stderr.count("CPU memory of this run") == 1


@pytest.mark.parametrize("end", [64, 4096])
def test_a_script_may_close_all_descriptors_and_open_them_anew(run: Runner, tmp_path: Path, end: int) -> None:
    # The byte is the number of SIGTERM: only the script may read it.
    code = (
        "import os, signal, time\n"
        f"os.closerange(3, {end})\n"
        "before = time.process_time()\n"
        "reader, writer = os.pipe(); os.write(writer, b'\\x0f'); time.sleep(0.3)\n"
        "os.set_blocking(reader, False); print(reader, os.read(reader, 2), time.process_time() - before < 0.2)\n"
        "if os.fork() == 0: os._exit(0)\n"
        "print(os.WEXITSTATUS(os.wait()[1]), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)\n"
    )
    done = run(tmp_path, "-c", code)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "3 b'\\x0f' True\n0\n"), done.stderr
    assert "in thread" not in done.stderr  # of an exception that is ignored
    assert done.stderr.count("CPU memory of this run") == 1


def test_a_handler_of_the_script_is_left_alone(run: Runner, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "def stop(number, frame): print('its own', number); sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "signal.pause()\n"
    )
    done = run(tmp_path, "-c", code)
    assert (done.returncode, done.stdout) == (3, "its own 15\n")
    assert done.stderr.count("CPU memory of this run") == 1


def test_sigterm_of_children_is_theirs(run: Runner, tmp_path: Path) -> None:
    code = (
        "import multiprocessing, os, signal, subprocess, sys, time\n"
        "def work(): time.sleep(100)\n"
        "for method in ('fork', 'spawn'):\n"
        "    if __name__ == '__main__':\n"
        "        child = multiprocessing.get_context(method).Process(target=work)\n"
        "        child.start(); child.terminate(); child.join(); print(child.exitcode)\n"
        "if __name__ == '__main__':\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        "    child.terminate(); print(child.wait())\n"
        "    ask = 'import signal; print(signal.getsignal(15), signal.pthread_sigmask(0, []))'\n"
        "    print(subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True).stdout)\n"
        "    print(signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
    )
    (tmp_path / "x.py").write_text(code)
    done = run(tmp_path, "x.py")
    assert done.stdout.split("\n") == ["-15", "-15", "-15", "0 set()", "", "set()", ""], done.stderr
    assert done.returncode == 0
    assert done.stderr.count("CPU memory of this run") == 1


def test_options_that_run_has_not_are_refused_as_options(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("import sys; print(sys.argv)")
    done = run(tmp_path, "--frobnicate", "x.py")
    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert run(tmp_path, "--device", "cpu", "x.py", "--device", "q").stdout == "['x.py', '--device', 'q']\n"
    assert run(tmp_path, "--limit", "64MiB", "--", "x.py", "--", "a").stdout == "['x.py', '--', 'a']\n"
    for device in ("cuda", "cuda:0"):
        done = run(tmp_path, "--device", device, "x.py")
        assert done.returncode == 1
        assert done.stderr.startswith(("Error: cuda: torch", "Error: cuda: mempool was built"))  # as the build is
    assert "'abacus'" in run(tmp_path, "--device", "abacus", "x.py").stderr
