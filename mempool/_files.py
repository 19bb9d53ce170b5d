"""Atomic writing: a file is written beside the one that it replaces and takes its place when it is complete."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from typing import BinaryIO, TypeAlias

StrPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"

_MOST_LINKS = 40  # as the kernel


@contextlib.contextmanager
def atomic_write(path: StrPath) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` at the end of the ``with`` block. See :func:`atomic_path`.

    Raises:
        OSError: it cannot be written; it names ``path``.
    """
    name = os.fsdecode(path)
    with atomic_path(name) as scratch, naming(name, scratch), open(scratch, "wb") as file:
        yield file


@contextlib.contextmanager
def atomic_path(path: StrPath) -> Iterator[str]:
    """The name of an empty file beside ``path``, which takes its place at the end of the ``with`` block.

    When the block raises, what was at ``path`` is still there, unchanged. Links are followed, and the mode of a file
    that is replaced is kept. A process that is killed leaves ``.mempool-….tmp`` behind. What is no regular file (a
    pipe, a terminal, ``/dev/stdout``) cannot be replaced: its own name is given. A forked child that leaves the block
    changes nothing.

    Raises:
        OSError: it cannot be written; it names ``path``.
    """
    name = os.fsdecode(path)
    process = os.getpid()
    with naming(name):
        target = _target(name)
        scratch = name if target is None else make_beside(target)
        mode = stat.S_IMODE(os.stat(scratch).st_mode)
    try:
        yield scratch
        if target is not None and os.getpid() == process:
            with naming(name, scratch):
                os.chmod(scratch, mode)  # the writer may have put another file there
                _replace(scratch, target)
    finally:
        if target is not None and os.getpid() == process:
            with contextlib.suppress(OSError):  # it is not there any more when all went well
                os.unlink(scratch)


def check_writable(path: StrPath) -> None:
    """Raises the OSError that :func:`atomic_path` would; for work that takes long before it writes."""
    name = os.fsdecode(path)
    with naming(name):
        target = _target(name)
        if target is not None:
            os.unlink(make_beside(target))
        elif stat.S_ISDIR(os.stat(name).st_mode) or not os.access(name, os.W_OK):
            os.close(os.open(name, os.O_WRONLY | os.O_NONBLOCK))


def make_beside(path: str) -> str:
    """Makes an empty file in the folder of ``path``, with the mode and owner of ``path``. Returns its name."""
    scratch = os.path.join(os.path.dirname(path), f".mempool-{secrets.token_hex(8)}.tmp")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with contextlib.suppress(OSError):  # there was none, or it belongs to another user
            before = os.stat(path)
            os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            os.fchown(descriptor, before.st_uid, before.st_gid)
    finally:
        os.close(descriptor)
    return scratch


@contextlib.contextmanager
def naming(name: str, scratch: str | None = None) -> Iterator[None]:
    """Makes an OSError name the file that was asked for, not the scratch file, and not none.

    With ``scratch``, errors that name any other file stay as they are.
    """
    try:
        yield
    except OSError as error:
        is_other = scratch is not None and error.filename not in (None, scratch, os.fsencode(scratch))
        if error.errno is None or is_other:
            raise
        raise OSError(error.errno, error.strerror, name) from error


def _target(name: str) -> str | None:
    """The regular file that ``name`` resolves to, or would; None for what is written to directly (a pipe, a device)."""
    name = os.path.join(os.getcwd(), name)  # the folder may change before the end
    for _ in range(_MOST_LINKS):
        # A link in /proc is an open file of a process, which would not see another file in its place.
        if f"{os.path.realpath(os.path.dirname(name))}/".startswith("/proc/"):
            return None
        if not os.path.islink(name):
            break
        name = os.path.join(os.path.dirname(name), os.readlink(name))
    try:
        found = os.stat(name)
    except FileNotFoundError:
        return name
    if not stat.S_ISREG(found.st_mode):
        return None
    if not os.access(name, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        os.close(os.open(name, os.O_WRONLY))  # raises, with the reason
    return name


def _replace(scratch: str, target: str) -> None:
    descriptor = os.open(scratch, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(scratch, target)
    with contextlib.suppress(OSError):  # some file systems cannot: the name then lasts once they write it
        folder = os.open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
