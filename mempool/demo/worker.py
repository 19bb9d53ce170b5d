"""One process that serves the workload with one allocator: ``python -m mempool.demo.worker``.

It talks to its parent through lines on stdout ("stage TEXT", "done COUNT") and leaves a JSON result and an .npy file
of all embeddings, in the order of the requests.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mempool
from mempool.demo.corpus import Request, Workload
from mempool.demo.extras import isolate, write_snapshot
from mempool.demo.measure import (
    Sampler,
    cpu_seconds,
    machine_busy_seconds,
    page_faults,
    peak_resident_bytes,
    resident_bytes,
)
from mempool.demo.model import Embedder, Embeddings

SNAPSHOT_REQUESTS = 3


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _timed(embedder: Embedder, request: Request) -> tuple[Embeddings, float]:
    start = time.perf_counter()
    embeddings = embedder.embed(request)
    return embeddings, (time.perf_counter() - start) * 1e3


def _serve(embedder: Embedder, workload: Workload, threads: int, with_mempool: bool) -> tuple[dict[str, Any], Any]:
    """Warm up, serve the burst, measure; the result's fields and all embeddings in order."""
    with ThreadPoolExecutor(threads) as executor:
        for future in [executor.submit(embedder.embed, request) for request in workload.warmup]:
            future.result()
        gc.collect()
        if with_mempool:
            mempool.reset_peak_memory_stats("cpu")
        start, faults, cpu, busy = time.perf_counter(), page_faults(), cpu_seconds(), machine_busy_seconds()
        with Sampler(with_mempool) as sampler:
            futures = [executor.submit(_timed, embedder, request) for request in workload.burst]
            for count, _ in enumerate(as_completed(futures), start=1):
                _tell(f"done {count}")
        faults, cpu, busy = page_faults() - faults, cpu_seconds() - cpu, machine_busy_seconds() - busy
        elapsed = time.perf_counter() - start
        served = [future.result() for future in futures]
        gc.collect()
        # The threads are still there and nobody asked for memory back: what a service holds between two bursts.
        after = resident_bytes()
    result = {
        "latencies_ms": [latency for _, latency in served],
        "elapsed_s": elapsed,
        "cpu_s": cpu,
        "other_cores": max(0.0, busy - cpu) / elapsed,
        "page_faults": faults,
        "peak_resident_bytes": max(after, peak_resident_bytes()),  # the two counters lag differently
        "resident_after_bytes": after,
        "peak_allocated_bytes": mempool.max_memory_allocated("cpu") if with_mempool else None,
        "peak_reserved_bytes": mempool.max_memory_reserved("cpu") if with_mempool else None,
        "timeline": asdict(sampler.timeline),
    }
    return result, np.concatenate([embeddings for embeddings, _ in served])


def _isolation(embedder: Embedder, workload: Workload) -> dict[str, Any]:
    isolation = isolate(embedder, workload.small, workload.large)
    return asdict(isolation) | {"held": isolation.held()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--allocator", choices=["torch", "mempool"], required=True)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--embeddings", type=Path, required=True)
    parser.add_argument("--snapshot", type=Path, help="also show the limit, and write a snapshot here")
    options = parser.parse_args()

    with_mempool = options.allocator == "mempool"
    if with_mempool:
        mempool.enable()
    if mempool.is_enabled("cpu") != with_mempool:
        raise SystemExit(f"the worker for {options.allocator} runs with the wrong allocator")
    # One thread for each operator: the service's parallelism is its requests, and the sums keep one order.
    torch.set_num_threads(1)

    workload = Workload(**json.loads(options.workload.read_text(encoding="utf-8")))
    _tell("stage loading")
    embedder = Embedder(options.weights)
    _tell("stage serving")
    result, embeddings = _serve(embedder, workload, options.threads, with_mempool)
    np.save(options.embeddings, embeddings)
    if options.snapshot is not None:
        _tell("stage limits and snapshot")
        result["isolation"] = _isolation(embedder, workload)
        write_snapshot(embedder, workload.burst[:SNAPSHOT_REQUESTS], workload.large, options.snapshot)
    options.result.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
