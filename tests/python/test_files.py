"""Files that are written: whole, or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from pathlib import Path

import pytest

from mempool._files import atomic_write, check_writable


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def fill(path: Path | str, error: BaseException | None = None) -> None:
    with atomic_write(path) as file:
        file.write(b"new" * 100_000)
        if error is not None:
            raise error


def test_a_file_is_replaced_once_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(tmp_path) == ["x"]


def test_what_raises_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    for error in (KeyError("mine"), KeyboardInterrupt(), OSError(errno.EIO, "its own", "elsewhere")):
        with pytest.raises(type(error)) as caught:
            fill(path, error)
        assert caught.value is error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_new_file_has_the_mode_that_the_process_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "x") as file:
            file.write(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").symlink_to("folder/b")
    (tmp_path / "folder" / "b").symlink_to("c")
    with atomic_write(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "folder" / "c").read_bytes() == b"new"
    assert os.readlink(tmp_path / "a") == "folder/b"
    assert names(tmp_path / "folder") == ["b", "c"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"), atomic_write(tmp_path / "loop"):
        pass


def test_a_folder_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with atomic_write("x") as file:
        os.chdir("other")
        file.write(b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert names(tmp_path / "other") == []


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\x01"
    with atomic_write(name) as file:
        file.write(b"new")
    with open(name, "rb") as read:
        assert read.read() == b"new"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("missing/x", errno.ENOENT),
        ("folder", errno.EISDIR),
        ("file/x", errno.ENOTDIR),
        ("y" * 300, errno.ENAMETOOLONG),
        ("", errno.ENOENT),
    ],
)
def test_what_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for attempt in (fill, check_writable):
        with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
            attempt(name)
        assert (caught.value.errno, caught.value.filename) == (number, name)
    assert names(tmp_path) == ["file", "folder"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space") as caught:
        fill(tmp_path / "full")
    assert caught.value.filename == str(tmp_path / "full")


def test_pipes_and_open_files_are_written_as_they_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    thread = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    thread.start()
    with atomic_write(tmp_path / "pipe") as file:
        file.write(b"through")
    thread.join()
    assert read == [b"through"]
    # Whoever holds this file open goes on in the same one.
    with open(tmp_path / "held", "w+b") as held:
        (tmp_path / "link").symlink_to(f"/proc/self/fd/{held.fileno()}")
        before = os.fstat(held.fileno()).st_ino
        with atomic_write(tmp_path / "link") as file:
            file.write(b"into it")
        assert (tmp_path / "held").stat().st_ino == before
        assert held.read() == b"into it"
    check_writable("/dev/null")


def test_a_forked_child_that_leaves_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with atomic_write(path) as file:
        file.write(b"of the parent")
        file.flush()
        child = os.fork()
        if child != 0:
            assert os.waitpid(child, 0)[1] == 0  # it has left the block by then
            assert len(names(tmp_path)) == 1
            assert not path.exists()
    if child == 0:
        os._exit(0)
    assert path.read_bytes() == b"of the parent"
    assert names(tmp_path) == ["x"]
