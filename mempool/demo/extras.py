"""What only mempool can show: a request over its limit that fails alone, and a snapshot with tracebacks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mempool
from mempool.demo.corpus import Request
from mempool.demo.model import Embedder, Embeddings

LIMIT_FACTOR = 1.2  # of the small request's measured peak


@dataclass(frozen=True)
class Isolation:
    """One large request refused in the pool "tenant-a" while the same request is served in "tenant-b"."""

    small_peak_bytes: int
    limit_bytes: int
    refused: bool
    message: str
    info: dict[str, Any]
    failed_ms: float  # after the start of the request
    used_after_bytes: int  # in tenant-a, once its exception is gone
    other_ms: float
    other_right: bool  # bit-equal to the same request run alone before
    overlapped: bool  # tenant-b's request ran before and after the refusal
    next_right: bool  # tenant-a's next, small request: bit-equal to the one that was measured

    def held(self) -> bool:
        """True if every promise was kept."""
        return self.refused and self.overlapped and self.other_right and self.next_right and self.used_after_bytes == 0


def isolate(embedder: Embedder, small: Request, large: Request) -> Isolation:
    """Measure the small request, limit a pool to a little more, and send the large one into it."""
    expected = embedder.embed(large)
    probe = mempool.MemoryPool("probe", device="cpu")
    with mempool.use_pool(probe):
        expected_small = embedder.embed(small)
    peak = probe.peak_bytes()
    probe.close()

    limit = int(peak * LIMIT_FACTOR)
    limited = mempool.MemoryPool("tenant-a", device="cpu", limit=limit)
    other = mempool.MemoryPool("tenant-b", device="cpu")
    started = threading.Event()
    with ThreadPoolExecutor(2) as executor:
        served = executor.submit(_serve, embedder, other, large, started.set)
        refusal = executor.submit(_refuse, embedder, limited, large, started)
        embeddings, begin, end = served.result()
        message, info, sent, failed = refusal.result()
    used = limited.used_bytes()
    with mempool.use_pool(limited):
        after = embedder.embed(small) if message else None
    result = Isolation(
        small_peak_bytes=peak,
        limit_bytes=limit,
        refused=bool(message),
        message=message,
        info=info,
        failed_ms=(failed - sent) * 1e3,
        used_after_bytes=used,
        other_ms=(end - begin) * 1e3,
        other_right=embeddings.tobytes() == expected.tobytes(),
        overlapped=begin < failed < end,
        next_right=after is not None and after.tobytes() == expected_small.tobytes(),
    )
    limited.close()
    other.close()
    return result


def _serve(
    embedder: Embedder, pool: mempool.MemoryPool, request: Request, on_start: Callable[[], None]
) -> tuple[Embeddings, float, float]:
    with mempool.use_pool(pool):
        begin = time.perf_counter()
        on_start()
        embeddings = embedder.embed(request)
        return embeddings, begin, time.perf_counter()


def _refuse(
    embedder: Embedder, pool: mempool.MemoryPool, request: Request, other_started: threading.Event
) -> tuple[str, dict[str, Any], float, float]:
    other_started.wait()
    sent = time.perf_counter()
    try:
        with mempool.use_pool(pool):
            embedder.embed(request)
    except mempool.OutOfMemoryError as error:
        # Only text leaves here: the error's traceback keeps the frames of the request alive, and so its tensors.
        return str(error), mempool.oom_info(error) or {}, sent, time.perf_counter()
    return "", {}, sent, time.perf_counter()


def write_snapshot(embedder: Embedder, before: list[Request], request: Request, path: Path) -> None:
    """Serve some requests with tracebacks on, and dump in the middle of one more."""
    pool = mempool.MemoryPool("request", device="cpu")
    mempool.record_history(True)
    try:
        kept = [embedder.tensor(each) for each in before]  # alive in the snapshot, as a cache of answers would be
        hook = embedder.call_in_last_layer(lambda: mempool.dump_snapshot(path, device="cpu"))
        with mempool.use_pool(pool):
            embedder.embed(request)
        hook.remove()
        kept.clear()
    finally:
        mempool.record_history(False)
    pool.close()
