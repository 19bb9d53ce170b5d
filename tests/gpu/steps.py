"""Steps of a stage: commands with an end in time, whose output and result are kept as they come."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as xml
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

_INTERRUPTED_S = 8  # pytest and the benchmarks write what they have on an interrupt
_DEATH_S = 10  # a process that waits for a driver may outlive its SIGKILL
_LEAST_S = 5  # a step that has less than that is not begun
_LOG_BYTES = 15 << 20  # of a log that is kept: its end

# A step that is not for this machine has not failed; one that there was no time for has.
PASSED, FAILED, LATE, NOT_RUN, NOT_HERE = "passed", "failed", "out of time", "not run", "not here"


@dataclass(frozen=True)
class Step:
    """One command of a stage. Without a command it says why there is none."""

    name: str
    command: tuple[str, ...] = ()
    limit_s: float = 60
    cwd: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    tests: Path | None = None  # the XML that pytest writes: its counts go into the result
    is_needed: bool = False  # nothing of the stage comes after its failure
    why_not: str = ""


class Stage:
    """Runs steps one after another, within one limit; the result so far is in a file at any time."""

    def __init__(self, name: str, out: Path, facts: Mapping[str, Any], limit_s: float) -> None:
        """`out`: a folder, for NAME.json and NAME.log."""
        out.mkdir(parents=True, exist_ok=True)
        self.result: dict[str, Any] = {"stage": name, **facts, "limit_s": limit_s, "complete": False, "steps": []}
        self._out = out / f"{name}.json"
        self._log = out / f"{name}.log"
        self._until = time.monotonic() + limit_s

    def run(self, steps: Iterable[Step]) -> dict[str, Any]:
        """All of them, as far as the time goes. The result, of which every step has a status."""
        rows: list[dict[str, Any]] = self.result["steps"]
        with self._log.open("ab") as log:
            for step in steps:
                row: dict[str, Any] = {"name": step.name, "command": list(step.command), "status": "running"}
                rows.append(row)
                self.write()
                left = self._until - time.monotonic()
                if not step.command:
                    row |= {"status": FAILED if step.is_needed else NOT_HERE, "why": step.why_not}
                elif left < _LEAST_S:
                    row |= {"status": NOT_RUN, "why": "no time left"}
                else:
                    row |= _bounded(step, min(step.limit_s, left), log)
                _say(log, f"{self.result['stage']}: {step.name}: {row['status']} {row.get('why', '')}".rstrip())
                self.write()
                if step.is_needed and row["status"] != PASSED:
                    break
        self.result["complete"] = True
        self.write()
        _keep_end(self._log)
        return self.result

    def write(self) -> None:
        """Replaces the file: a reader never finds half of it."""
        beside = self._out.with_suffix(".tmp")
        beside.write_text(json.dumps(self.result, indent=1) + "\n")
        os.replace(beside, self._out)


def has_passed(result: Mapping[str, Any]) -> bool:
    """Whether no step of a stage failed; one that could not be run here has not failed."""
    return all(step["status"] in (PASSED, NOT_HERE) for step in result["steps"])


def _bounded(step: Step, limit_s: float, log: IO[bytes]) -> dict[str, Any]:
    """Runs a command and its children in a session of their own, which ends with the limit."""
    _say(log, f"$ {' '.join(' '.join(step.command).split())}")
    begun = time.monotonic()
    row: dict[str, Any] = {"limit_s": round(limit_s, 1)}
    process: subprocess.Popen[bytes] | None = None
    reader: threading.Thread | None = None
    try:
        with _signals_wait():
            process = subprocess.Popen(
                step.command,
                cwd=step.cwd,
                env={**os.environ, **step.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        assert process.stdout is not None
        reader = threading.Thread(target=_copy, args=(process.stdout, log), daemon=True)
        reader.start()
        status = process.wait(limit_s)
        row |= {"status": PASSED if status == 0 else FAILED, "exit": status}
        if status < 0:
            row["why"] = f"ended by {signal.Signals(-status).name}"
    except OSError as error:
        return {"status": FAILED, "why": f"{step.command[0]}: {error.strerror}"}
    except subprocess.TimeoutExpired:
        assert process is not None
        row |= {"status": LATE, "why": f"not done after {limit_s:.0f} s"}
        _signal(process, signal.SIGINT, _INTERRUPTED_S)
    finally:
        if process is not None:
            _signal(process, signal.SIGKILL, _DEATH_S)  # its children, too, where it left some
        if reader is not None:
            reader.join(2)
    row["seconds"] = round(time.monotonic() - begun, 1)
    if step.tests is not None:
        row["tests"] = counts(step.tests)
    return row


def counts(path: Path) -> dict[str, int] | None:
    """How many tests of a pytest XML file passed, failed and were skipped; None where it was not written."""
    try:
        suites = list(xml.parse(path).getroot().iter("testsuite"))
    except (OSError, xml.ParseError):
        return None
    total, failures, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    )
    return {"passed": total - failures - errors - skipped, "failed": failures + errors, "skipped": skipped}


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals that end this process do so at the end of the block: a child that is being made would outlive it."""
    if threading.current_thread() is not threading.main_thread():  # it gets no signals
        yield
        return
    pending: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: pending.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in pending:
            signal.raise_signal(number)


def _signal(process: subprocess.Popen[bytes], number: int, wait_s: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(wait_s)


def _copy(stream: IO[bytes], log: IO[bytes]) -> None:
    """To the log and to standard error, as standard output is for --json."""
    with contextlib.suppress(ValueError, OSError):  # the log may be closed, when a process holds on to its output
        for line in stream:
            log.write(line)
            log.flush()
            sys.stderr.buffer.write(line)
            sys.stderr.flush()


def _say(log: IO[bytes], text: str) -> None:
    line = f"== {time.strftime('%H:%M:%S')} {text}\n".encode()
    log.write(line)
    log.flush()
    sys.stderr.buffer.write(line)
    sys.stderr.flush()


def _keep_end(path: Path) -> None:
    if path.stat().st_size > _LOG_BYTES:
        path.write_bytes(path.read_bytes()[-_LOG_BYTES:])
