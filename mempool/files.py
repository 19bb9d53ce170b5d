"""Files that are whole or not there: written beside the old one, which stays good until the new one is on the disk."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new, empty file in the same folder, which takes the place of ``path`` when the block ends without an error.

    With an error it is removed, and what was at ``path`` is as it was. A link stays one: what it points to is replaced.
    A file that is replaced hands on its permissions. OSErrors, also those of the block, name ``path``.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "it is no regular file, and would be replaced by one")
        new = target.parent / f".{secrets.token_hex(8)}.tmp"
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE((target if target.exists() else new).stat().st_mode)
        try:
            yield new
            new.chmod(mode)  # whoever wrote it may have put another in its place
            _sync(new)
            os.replace(new, target)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        _sync(target.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
