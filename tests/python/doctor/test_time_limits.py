"""Items in child processes: what is lost with a child, and what goes on."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from mempool.doctor import children
from mempool.doctor.children import Answer

# Each item says what happens in it.
CHILD = """
import os, signal, sys, time
from mempool.doctor import children

def answer(item):
    if item == "hang": time.sleep(600)
    if item == "crash": os.kill(os.getpid(), signal.SIGSEGV)
    if item == "raise": raise ValueError("no such thing")
    if item == "leave": os._exit(0)
    print("a library says something")
    print('{"so does": "this one"}')
    return os.getpid(), item != "last of its process"

if sys.argv[1] == "broken": raise ImportError("cannot begin")
children.serve(sys.argv[2:], answer)
"""


def ask(*items: str, first: str = "sound") -> list[Answer]:
    return list(children.answers([sys.executable, "-c", CHILD, first], items, limit_s=5))


def test_one_process_answers_all() -> None:
    found = ask("a", "b", "c")
    assert [each.item for each in found] == ["a", "b", "c"]
    assert len({each.value for each in found}) == 1
    assert all(each.problem is None for each in found)


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ("hang", "no answer within 5 s"),
        ("crash", "its process ended by SIGSEGV"),
        ("raise", "its process ended with status 1: ValueError: no such thing"),
    ],
)
def test_what_is_lost_is_one_item(what: str, problem: str) -> None:
    before, lost, after = ask("before", what, "after")
    assert lost == Answer(what, None, problem)
    assert before.problem is after.problem is None
    assert before.value != after.value


def test_a_process_may_leave_between_items() -> None:
    before, after = ask("last of its process", "after")
    assert before.problem is after.problem is None
    assert before.value != after.value


def test_one_that_leaves_in_its_first_item_has_lost_it() -> None:
    assert ask("leave", "after")[0] == Answer("leave", None, "its process left without an answer")


def test_one_that_cannot_begin_is_tried_once() -> None:
    problem = "its process ended with status 1: ImportError: cannot begin"
    assert ask("a", "b", first="broken") == [Answer("a", None, problem), Answer("b", None, problem)]


def is_running(stat: Path) -> bool:
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    status, out, errors = children.run([sys.executable, "-c", script], str(tmp_path), limit_s=3)
    assert status is None
    assert errors == "not done after 3 s\n"
    stat = Path(f"/proc/{out.strip()}/stat")
    deadline = time.monotonic() + 60  # the kernel ends it when its turn comes
    while is_running(stat) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(stat)
