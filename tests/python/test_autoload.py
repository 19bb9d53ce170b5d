"""MEMPOOL_ENABLE: every process that imports torch has mempool, under its limit, or says why not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
import torch

from mempool._autoload import Request, parse
from mempool.errors import ConfigError

Python = Callable[..., "subprocess.CompletedProcess[str]"]
GIB = 1 << 30
NO_CUDA = pytest.mark.skipif(
    torch.version.cuda is not None, reason="torch has CUDA: that there is no GPU, it finds later"
)
STATE = "import torch, mempool; print(mempool.is_enabled('cpu'), mempool.get_limit('cpu'))"


@pytest.mark.parametrize(
    "program", [STATE, STATE.replace("torch, mempool", "mempool, torch"), "import mempool.nn;" + STATE]
)
def test_it_is_enabled_whichever_is_imported_first(python: Python, program: str) -> None:
    done = python(program, MEMPOOL_ENABLE="cpu=1GiB")
    assert done.stdout.split() == ["True", str(GIB)], done.stderr
    assert done.stderr == ""


def test_without_the_variable_nothing_of_mempool_is_imported(python: Python) -> None:
    ours = "('mempool', '_mempool')"
    program = f"import sys, torch; print(sorted(name for name in sys.modules if name.startswith({ours})))"
    assert python(program).stdout == "['_mempool_autoload']\n"
    assert python(program, MEMPOOL_ENABLE="cpu", MEMPOOL_DISABLE="1").stdout == "['_mempool_autoload']\n"


def test_torch_can_be_told_not_to(python: Python) -> None:
    done = python(STATE, MEMPOOL_ENABLE="cpu=1GiB", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.stdout.split() == ["False", "None"], done.stderr


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("cpu=lots", "'lots'"),
        ("cpu=1GiB,gpu", "'gpu' is not understood: name devices (cpu, cuda, pinned), each once"),
        ("cpu=", "'cpu=' is not understood"),
        ("cpu=1GiB,cpu", "'cpu' is not understood"),
        pytest.param("cpu=1,cuda=4", "cuda: torch", marks=NO_CUDA),
    ],
)
def test_a_process_that_asked_for_a_limit_does_not_run_without(python: Python, asked: str, why: str) -> None:
    for first in ("torch", "mempool"):
        done = python(f"import {first}; print('it ran')", MEMPOOL_ENABLE=asked)
        assert done.returncode != 0
        assert done.stdout == ""
        line = next(line for line in done.stderr.splitlines() if line.startswith("ImportError: "))
        assert line.startswith(f"ImportError: MEMPOOL_ENABLE={asked}: "), line
        assert why in line


@pytest.mark.parametrize(
    ("asked", "why"),
    [("gpu", "'gpu' is not understood"), pytest.param("cuda,cpu", "cuda: torch", marks=NO_CUDA), ("1", "'1'")],
)
def test_without_a_limit_one_warning_says_why(python: Python, asked: str, why: str) -> None:
    done = python(STATE, MEMPOOL_ENABLE=asked)
    assert done.stdout.split() == [str("cpu" in asked), "None"]
    assert done.stderr.count("Warning") == 1
    assert f"UserWarning: MEMPOOL_ENABLE={asked}: {why}" in done.stderr or f"{asked}: {why}" in done.stderr


def test_a_mempool_that_cannot_be_imported(python: Python) -> None:
    program = "import sys; sys.modules['mempool._core'] = None; import torch; print('goes on')"
    done = python(program, MEMPOOL_ENABLE="cpu")
    assert done.stdout == "goes on\n", done.stderr
    assert done.stderr.count("Warning: MEMPOOL_ENABLE=cpu: ") == 1
    done = python(program, MEMPOOL_ENABLE="cpu=1GiB")
    assert done.returncode != 0
    assert "mempool._core" in done.stderr


def test_a_switch_that_wins_over_all(python: Python) -> None:
    program = STATE + "; print(mempool.enable(), mempool.enable('cpu', limit=1), mempool.is_enabled(None))"
    done = python(program, MEMPOOL_ENABLE="cpu=nonsense", MEMPOOL_DISABLE="1")
    why = "'MEMPOOL_DISABLE=1 is set'"
    assert done.stdout.splitlines() == ["False None", f"{{'cpu': {why}, 'cuda': {why}}} {{'cpu': {why}}} False"], (
        done.stderr
    )


def test_what_is_asked_for() -> None:
    assert parse(" cpu = 75% ,cuda=8GiB") == [Request("cpu", "75%"), Request("cuda", "8GiB")]
    assert parse("cuda") == [Request("cuda", None)]
    for wrong in ("", "cpu,,cuda", "cpu=1=2", "cpu=0", "cpu=-1", "cpu;cuda"):
        with pytest.raises(ConfigError):
            parse(wrong)
