"""``mempool demo``: a real sentence-embedding model served with torch's own CPU allocator and with mempool.

errors    DemoError
corpus    the texts and the seeded sequence of requests (parent)
model     finds the packaged weights, loads them, embeds (child)
measure   resident memory, page faults, the sampling thread (child)
extras    one request over its limit, the snapshot (child)
worker    one process with one allocator: ``python -m mempool.demo.worker``
compare   starts the workers in turn and checks what they return (parent)
report    the table and the timeline (parent)
compress  ``mempool compress``: the same model in int8 and sparse int8, in one process
"""

from __future__ import annotations

from pathlib import Path

from mempool.demo.errors import DemoError

__all__ = ["DemoError", "main"]


def main(out: Path, requests: int, threads: int, on_stderr: bool = False) -> int:
    """Run the comparison, print it and write its files into ``out``; the exit status, 0 only if every check held.

    ``on_stderr``: print to standard error.

    Raises DemoError when a package is missing or a worker process dies.
    """
    # Imported late: a worker imports this package too, and should not carry rich and the report's code.
    from mempool.demo.compare import run

    return run(out, requests, threads, on_stderr)
