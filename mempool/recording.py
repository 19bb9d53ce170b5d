"""Recording what an allocator is asked for, in the format that ``mempool.replay`` reads."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mempool import _core
from mempool._device import Device, allocator


class TraceRecording:
    """A recording that runs; what ``with record_trace(...)`` gives."""

    def __init__(self, device: _core.Device) -> None:
        self._device = device
        self._steps = 0
        self.events = 0  # once it has ended

    def step(self) -> None:
        """Marks the end of a step: of training, of a scheduler, of a burst."""
        self._device.mark_recording(self._steps)
        self._steps += 1


@contextlib.contextmanager
def record_trace(path: str | os.PathLike[str], device: Device = None) -> Iterator[TraceRecording]:
    """Records every allocation and free of all threads while the ``with`` block runs.

    Blocks that were live before are left out, also their frees. A name that ends in ``.gz`` is compressed at the end.
    While it runs each allocation costs a few hundred nanoseconds more; a forked child records nothing.

    Args:
        path: the file, overwritten. Columns: ``seq, op, id, bytes, stream, time_ns, thread, pool``; bytes as asked for.
        device: None means the only enabled one.

    Raises:
        OSError: the file cannot be written (at the end: some events are lost), or a recording runs already (EBUSY).
    """
    handle = allocator(device)
    name = os.fspath(path)
    with _plain_file(name) as plain:
        handle.start_recording(plain)
        recording = TraceRecording(handle)
        process = os.getpid()
        error = 0
        try:
            yield recording
        finally:
            if os.getpid() == process:  # a forked child that ends inside the block leaves it to its parent
                recording.events, error = handle.stop_recording()
        if error:
            raise OSError(error, f"{os.strerror(error)}: events of the trace are lost", name)


@contextlib.contextmanager
def _plain_file(name: str) -> Iterator[str]:
    """Where to write: the file itself, or one beside it that is compressed into it at the end."""
    if not name.endswith(".gz"):
        yield name
        return
    process = os.getpid()
    scratch = Path(tempfile.mkdtemp(prefix=".mempool-trace-", dir=Path(name).absolute().parent))
    plain = scratch / "trace.csv"
    try:
        yield str(plain)
    finally:
        if os.getpid() == process:
            try:
                with plain.open("rb") as source, gzip.open(name, "wb", compresslevel=6) as packed:
                    shutil.copyfileobj(source, packed)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
