"""What a wheel of mempool may hold, and the name of the platforms that it runs on.

`pip install auditwheel wheel` is needed.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

# Where the loader may look, and what it finds there: mempool's own library, and torch's, which are loaded already.
OWN = {"libmempool.so"}
TORCH = {"libc10.so", "libtorch_cpu.so", "libc10_cuda.so", "libtorch_cuda.so"}
SYSTEM = re.compile(r"(lib(stdc\+\+|gcc_s|c|m|dl|pthread|rt|gomp)|ld-linux[\w-]*)\.so\.\d+")


class WheelError(RuntimeError):
    """The wheel would not run, or not only, where its name says."""


def problems(wheel: Path) -> list[str]:
    """What is wrong with the compiled files of a wheel: whole sentences, none for a good one."""
    found = []
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if re.search(r"\.so(\.|$)", name)]
        for name in names:
            inside = Path(name).name
            if inside in TORCH or SYSTEM.fullmatch(inside):
                found.append(f"{name} is not mempool's.")
            needed, paths = linking(archive.read(name))
            found += [f"{name} needs {each}." for each in needed - OWN - TORCH if not SYSTEM.fullmatch(each)]
            found += [f"{name} looks in {each}." for each in paths if not each.startswith("$ORIGIN")]
            if "/_shims/" not in name and needed & TORCH:
                found.append(f"{name} links torch, and lies outside of _shims.")
    if not any("/_shims/" in name for name in names):
        found.append("There is no part for any torch.")
    return found


def linking(library: bytes) -> tuple[set[str], list[str]]:
    """(the libraries that it needs, the folders where they are looked for)"""
    from elftools.elf.elffile import ELFFile

    section = ELFFile(io.BytesIO(library)).get_section_by_name(".dynamic")
    needed, paths = set(), []
    for tag in section.iter_tags() if section is not None else ():
        if tag.entry.d_tag == "DT_NEEDED":
            needed.add(tag.needed)
        elif tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
            paths += (tag.rpath if tag.entry.d_tag == "DT_RPATH" else tag.runpath).split(":")
    return needed, [path for path in paths if path]


def platform_of(wheel: Path) -> str:
    """The oldest manylinux platform that has all of glibc and libstdc++ that the wheel uses."""
    done = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(wheel)], capture_output=True, text=True, check=True
    )
    found = re.search(r'"(manylinux_\w+)"', done.stdout)
    if found is None:
        raise WheelError(f"auditwheel names no manylinux platform for {wheel}:\n{done.stdout}")
    return found[1]


def name_platform(wheel: Path) -> Path:
    """Renames the wheel for the platform that it runs on, and checks what is in it; the new path. WheelError."""
    wrong = problems(wheel)
    if wrong:
        raise WheelError(f"{wheel}: " + " ".join(wrong))
    tags = [sys.executable, "-m", "wheel", "tags", "--remove", f"--platform-tag={platform_of(wheel)}", str(wheel)]
    done = subprocess.run(tags, capture_output=True, text=True, check=True)
    return wheel.with_name(done.stdout.split()[-1])
