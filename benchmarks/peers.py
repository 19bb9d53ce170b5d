"""The allocators that benchmarks compare: those that a PyTorch user on a CPU can choose, and mempool.

A peer is put under the whole process with LD_PRELOAD, as its users do, and configured by environment variables. The
libraries are Debian's packages. A peer that is not installed is left out and named: ``missing()`` says how to get it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/local/lib", "/usr/lib")


@dataclass(frozen=True)
class Peer:
    """One allocator, with its settings."""

    name: str
    library: str = ""  # the file that is preloaded; empty for the C library's allocator
    package: str = ""  # Debian's package
    environment: Mapping[str, str] = field(default_factory=dict)
    tuned: bool = False  # for speed, at the price of memory

    def path(self) -> str | None:
        """Where the library lies; "" when none is needed, None when it is missing."""
        if not self.library:
            return ""
        return next((str(path) for folder in FOLDERS if (path := Path(folder) / self.library).exists()), None)

    def variables(self) -> dict[str, str]:
        """What a child's environment has beyond a clean one."""
        preload = {"LD_PRELOAD": self.path() or ""} if self.library else {}
        return {**self.environment, **preload}


GLIBC = Peer("glibc")
# The settings that make glibc fast: no trimming, no mapping of large blocks, huge pages.
_GLIBC_TUNED = ":".join(
    f"glibc.malloc.{key}={value}"
    for key, value in {
        "hugetlb": 1,
        "mmap_threshold": 4 << 30,
        "trim_threshold": 8 << 30,
        "top_pad": 64 << 20,
    }.items()
)
OURS = Peer("mempool")
PEERS: tuple[Peer, ...] = (
    GLIBC,
    Peer("glibc-tuned", environment={"GLIBC_TUNABLES": _GLIBC_TUNED}, tuned=True),
    Peer("jemalloc", "libjemalloc.so.2", "libjemalloc2"),
    Peer(
        "jemalloc-tuned",
        "libjemalloc.so.2",
        "libjemalloc2",
        {"MALLOC_CONF": "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1"},
        tuned=True,
    ),
    Peer("tcmalloc", "libtcmalloc_minimal.so.4", "libtcmalloc-minimal4", tuned=True),
    Peer("mimalloc", "libmimalloc.so.2", "libmimalloc2.0"),
    OURS,
)
NAMES: tuple[str, ...] = tuple(peer.name for peer in PEERS)


def peer(name: str) -> Peer:
    """The peer of that name; KeyError if there is none."""
    return {each.name: each for each in PEERS}[name]


def chosen(names: Sequence[str] | None) -> list[str]:
    """The names that can be run here, in the order of the table: of those given, or of all. Default glibc and mempool
    are always among them: every ratio is taken to the one of the other."""
    wanted = {GLIBC.name, OURS.name, *(NAMES if names is None else names)}
    return [each.name for each in PEERS if each.name in wanted and each.path() is not None]


def missing(names: Sequence[str] | None) -> list[str]:
    """One sentence for each peer that cannot be run here."""
    wanted = NAMES if names is None else names
    return [
        f"{each.name} is left out: {each.library} is not installed (Debian: {each.package})."
        for each in PEERS
        if each.name in wanted and each.path() is None
    ]


def check_loaded(name: str) -> None:
    """In a child: raises SystemExit unless the peer's library is what this process runs on."""
    library = peer(name).library
    mapped = Path("/proc/self/maps").read_text()
    if library and library.removesuffix(".0") not in mapped:
        raise SystemExit(f"{library} was not preloaded: the figures would be another allocator's")
    if not library and os.environ.get("LD_PRELOAD"):
        raise SystemExit("something is preloaded that should not be")
