"""Steps end in time, and what they wrote stays."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import steps
from steps import Stage, Step

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")


def python(name: str, code: str, **more: object) -> Step:
    return Step(name, (sys.executable, "-c", code), **more)  # type: ignore[arg-type]


def run(out: Path, *todo: Step, limit_s: float = 60) -> tuple[list[dict[str, object]], str]:
    result = Stage("some", out, {"device": "none"}, limit_s).run(todo)
    assert json.loads((out / "some.json").read_text()) == result
    assert result["complete"]
    assert steps.has_passed(result) == all(row["status"] in ("passed", "not here") for row in result["steps"])
    return result["steps"], (out / "some.log").read_text()


def test_each_step_has_its_result(tmp_path: Path) -> None:
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    rows, log = run(tmp_path, python("good", "print('well')"), python("bad", "exit(3)"), python("crash", crash))
    assert [(row["status"], row["exit"]) for row in rows] == [("passed", 0), ("failed", 3), ("failed", -11)]
    assert rows[2]["why"] == "ended by SIGSEGV"
    assert "\nwell\n" in log


def test_a_step_that_hangs_is_ended_and_keeps_what_it_wrote(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "print('so far', flush=True)\n"
        "time.sleep(600)"
    )
    rows, log = run(tmp_path, python("hangs", code, limit_s=6), python("after", "print('goes on')"))
    assert [row["status"] for row in rows] == ["out of time", "passed"]
    assert "so far" in log
    assert "goes on" in log
    stat = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    assert not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_the_stage_has_a_limit_of_its_own(tmp_path: Path) -> None:
    rows, _ = run(tmp_path, python("long", "import time; time.sleep(600)"), python("late", ""), limit_s=6)
    assert [row["status"] for row in rows] == ["out of time", "not run"]
    assert rows[1]["why"] == "no time left"


def test_nothing_comes_after_a_step_that_is_needed(tmp_path: Path) -> None:
    rows, _ = run(tmp_path, python("needed", "exit(1)", is_needed=True), python("after", ""))
    assert [row["name"] for row in rows] == ["needed"]
    rows, _ = run(tmp_path, Step("needed", why_not="there is no nvcc", is_needed=True), python("after", ""))
    assert [(row["status"], row["why"]) for row in rows] == [("failed", "there is no nvcc")]


def test_what_is_not_for_this_machine_has_not_failed(tmp_path: Path) -> None:
    rows, _ = run(tmp_path, Step("sanitize", why_not="there is no compute-sanitizer"))
    assert rows[0]["status"] == "not here"


def test_a_step_that_is_running_is_in_the_file(tmp_path: Path) -> None:
    code = f"import json; print(json.load(open({str(tmp_path / 'some.json')!r}))['steps'][-1]['status'])"
    _, log = run(tmp_path, python("looks", code))
    assert "\nrunning\n" in log


def test_tests_are_counted(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\n@pytest.mark.skip\ndef test_c(): pass\n"
    )
    report = tmp_path / "a.xml"
    command = (sys.executable, *PYTEST, str(tmp_path), f"--junitxml={report}")
    rows, _ = run(tmp_path, Step("tests", command, tests=report))
    assert rows[0]["tests"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert steps.counts(tmp_path / "none.xml") is None


def test_whoever_is_ended_while_a_step_is_made_ends_it() -> None:
    """The signal comes when the child is there and nobody knows of it yet."""
    made: list[int] = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            made.append(self.pid)
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with mock.patch.object(steps.subprocess, "Popen", Interrupted), pytest.raises(SystemExit):
            steps._bounded(Step("sleeps", ("sleep", "100")), 20, io.BytesIO())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(made) == 1
    assert not Path(f"/proc/{made[0]}/exe").exists()
