"""``record_trace``: records allocations and frees of a device in the format that ``mempool.replay`` reads."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import shutil
from collections.abc import Iterator

from mempool import _core
from mempool._device import Device, allocator
from mempool._files import StrPath, atomic_path, make_beside, naming


class TraceRecording:
    """A running recording, made by ``with record_trace(...)``. After its end ``events`` is the number of events."""

    def __init__(self, device: _core.Device) -> None:
        self._device = device
        self._steps = 0
        self.events = 0  # once it has ended

    def step(self) -> None:
        """Marks the end of a step: of training, of a scheduler, of a burst."""
        self._device.mark_recording(self._steps)
        self._steps += 1


# The running recording of each device. Whether one runs, the core decides.
_paths: dict[str, str] = {}


@contextlib.contextmanager
def record_trace(path: StrPath, device: Device = None) -> Iterator[TraceRecording]:
    """Records every allocation and free of all threads while the ``with`` block runs.

    Blocks that were live before are left out, and so are their frees. A trace whose name ends in ``.gz`` is compressed
    at the end. While a recording runs each allocation costs a few hundred nanoseconds more; a forked child records
    nothing. The trace takes the place of ``path`` at the end, also when the ``with`` block raises. Until then it grows
    in a file ``.mempool-….tmp`` beside it, which a process that is killed leaves behind.

    Args:
        path: the file, replaced. Columns: ``seq, op, id, bytes, stream, time_ns, thread, pool``; bytes are those
            requested.
        device: None means the only enabled one.

    Raises:
        OSError: the file cannot be written (at the end: some events are lost, and the file at ``path`` is unchanged),
            or a recording of that device runs already (EBUSY).
    """
    handle = allocator(device)
    name = os.fsdecode(path)
    failure: BaseException | None = None
    with _plain_file(name) as plain:
        _start(handle, plain, name)
        recording = TraceRecording(handle)
        process = os.getpid()
        error = 0
        try:
            yield recording
        except BaseException as raised:  # the events up to the error are kept: they may show its cause
            failure = raised
        finally:
            if os.getpid() == process:  # a forked child that ends inside the block leaves the file to its parent
                recording.events, error = handle.stop_recording()
                _paths.pop(handle.name, None)
        if error:
            raise OSError(error, f"{os.strerror(error)}: events of the trace are lost", name) from failure
    if failure is not None:
        raise failure


def _start(handle: _core.Device, plain: str, name: str) -> None:
    try:
        with naming(name, plain):
            handle.start_recording(os.fsencode(plain))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        where = f", to '{_paths[handle.name]}'" if handle.name in _paths else ""
        message = f"a trace of {handle.name} is being recorded already{where}: end that recording first"
        raise OSError(errno.EBUSY, message, name) from None
    _paths[handle.name] = name


@contextlib.contextmanager
def _plain_file(name: str) -> Iterator[str]:
    """The file to write to: it takes the place of ``path`` at the end, or is compressed into it."""
    with atomic_path(name) as scratch:
        if not name.endswith(".gz"):
            yield scratch
            return
        process = os.getpid()
        with naming(name):
            plain = make_beside(os.path.join(os.getcwd(), name))
        try:
            yield plain
            if os.getpid() == process:
                with naming(name, scratch), open(plain, "rb") as source, gzip.open(scratch, "wb", 6) as packed:
                    shutil.copyfileobj(source, packed)
        finally:
            if os.getpid() == process:
                os.unlink(plain)
