"""Items of work in child processes, with an answer to each: a crash or a hang costs one item, and no other.

A child prints lines of JSON: one when it is ready, then one for each item, in order. It may leave with status 0 between
two items, for a fresh one to go on: after an error of CUDA, every later call of a process fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

_START_S = 240  # to import torch and to set a device up
_DEATH_S = 10  # a process that waits for a driver may outlive its SIGKILL
_READY = "ready"


@dataclass(frozen=True)
class Answer:
    """What a child said to an item, or why it said nothing."""

    item: str
    value: Any
    problem: str | None = None


def serve(items: Iterable[str], answer: Callable[[str], tuple[Any, bool]]) -> None:
    """The child's side, when all is set up. ``answer`` gives an item's value, and whether this process can go on."""
    print(json.dumps({_READY: True}), flush=True)
    for item in items:
        value, goes_on = answer(item)
        print(json.dumps({"item": item, "value": value}), flush=True)
        if not goes_on:
            return


def answers(command: Sequence[str], items: Iterable[str], limit_s: float) -> Iterator[Answer]:
    """Runs ``command items…`` and gives an answer to each item, in order, as soon as it is there.

    Each item has ``limit_s``. Where a child is lost, another one goes on with the items behind. One that is lost before
    it is ready loses all items that are left: the next would fare no better.
    """
    left = list(items)
    while left:
        with _Child([*command, *left]) as child:
            if (problem := child.start()) is not None:
                yield from (Answer(item, None, problem) for item in left)
                return
            answered = 0
            while left:
                line, problem = child.line(limit_s)
                if line is None:
                    if problem is not None or not answered:  # else it has left between two items
                        yield Answer(left.pop(0), None, problem or "its process left without an answer")
                    break
                answered += 1
                yield Answer(left.pop(0), line["value"])


class _Child:
    """A process with a session of its own, whose lines are read with a limit of time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._errors, stdin=subprocess.DEVNULL, start_new_session=True
        )
        assert self._process.stdout is not None
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._errors.close()

    def start(self) -> str | None:
        """Waits until it is ready; why it never will be, or None."""
        line, problem = self.line(_START_S)
        return None if line is not None else problem or "its process ended before it began"

    def line(self, limit_s: float) -> tuple[dict[str, Any] | None, str | None]:
        """Its next line, or why there is none; neither when it has left with status 0."""
        try:
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            self._kill()
            return None, f"no answer within {limit_s:g} s"
        if line is not None:
            return line, None
        try:
            status = self._process.wait(_DEATH_S)
        except subprocess.TimeoutExpired:
            return None, "its process does not end"
        return None, None if status == 0 else f"its process ended {_manner(status)}{self._last_words()}"

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def _kill(self) -> None:
        _kill_session(self._process)


def run(command: Sequence[str], cwd: str, limit_s: float) -> tuple[int | None, str, str]:
    """Runs a command and its own children for at most ``limit_s``: its status (None: killed), output and errors."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, cwd=cwd, stdout=output, stderr=errors, start_new_session=True)
        status = None
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            errors.seek(0, os.SEEK_END)
            errors.write(f"not done after {limit_s:g} s\n".encode())
        finally:
            _kill_session(process)
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return status, texts[0], texts[1]


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_DEATH_S)


def _manner(status: int) -> str:
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"


def _read(stream: IO[bytes], lines: queue.Queue[dict[str, Any] | None]) -> None:
    """Puts what is an answer into the queue, and None at the end; libraries print other things."""
    with stream:
        for text in stream:
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and (_READY in line or "item" in line):
                    lines.put(line)
    lines.put(None)
