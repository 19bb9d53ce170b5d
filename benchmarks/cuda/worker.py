"""One process of the CUDA benchmark: one allocator, one task, one line of JSON.

python -m benchmarks.cuda.worker --side mempool --loops loops.so replay trace.csv.gz [--capacity BYTES]
python -m benchmarks.cuda.worker --side native --loops loops.so smallest trace.csv.gz
python -m benchmarks.cuda.worker --side native --loops loops.so pairs
python -m benchmarks.cuda.worker --side native --loops loops.so offload
python -m benchmarks.cuda.worker --side native --loops loops.so train
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import sys
import threading
import time
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cuda_standin"))
import control  # noqa: E402

CALLS = (
    *("cudaMalloc", "cudaFree", "cuMemAddressReserve", "cuMemAddressFree", "cuMemCreate", "cuMemMap"),
    *("cuMemSetAccess", "cuMemUnmap", "cuMemRelease"),
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
)
EVENTS = ("cudaEventRecord", "cudaEventQuery")
PLENTY = 80 << 30
MIB = 1 << 20


class Device:
    """The stand-in's device, torch on it, and the compiled loops."""

    def __init__(self, side: str, loops: str) -> None:
        folder = os.environ.get("CUDA_STANDIN_LIB", str(ROOT / "build" / "cuda_standin" / "lib"))
        self.standin = control.load(folder)
        self.standin.set_capacity(PLENTY)
        if side == "expandable":
            os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
        import torch

        self.torch = torch
        torch.backends.cudnn.enabled = False
        torch.backends.cuda.enable_cudnn_sdp(False)
        if side == "mempool":
            import mempool

            mempool.enable("cuda")
        torch.cuda.init()
        torch.cuda.synchronize()
        self.loops = ctypes.CDLL(loops)
        self.loops.replay.restype = self.loops.pairs.restype = ctypes.c_double
        pointer = ctypes.c_void_p
        self.loops.replay.argtypes = [*([pointer] * 4), ctypes.c_int64, ctypes.c_int64, pointer]
        self.loops.pairs.argtypes = [ctypes.c_size_t, ctypes.c_int64]

    def empty(self) -> None:
        self.loops.free_blocks()
        self.torch.cuda.synchronize()
        self.torch.cuda.empty_cache()

    def counted(self) -> dict[str, int]:
        return {name: self.standin.count(name) for name in (*CALLS, *EVENTS)}


class Trace:
    """The events of a trace as arrays, for the loops."""

    def __init__(self, columns: Sequence[array[int]]) -> None:
        self.ops, self.ids, self.sizes, self.streams = (array("q", column) for column in columns[:4])
        live: dict[int, int] = {}
        now = self.peak_live = 0
        for op, block, size in zip(self.ops, self.ids, self.sizes, strict=True):
            if op == 1:
                live[block] = size
                now += size
                self.peak_live = max(self.peak_live, now)
            elif op == 0:
                now -= live.pop(block)

    def replay(self, device: Device, streams: Sequence[Any], first: int = 0, last: int | None = None) -> float:
        handles = (ctypes.c_void_p * len(streams))(*(stream.cuda_stream for stream in streams))
        columns = [column.buffer_info()[0] for column in (self.ops, self.ids, self.sizes, self.streams)]
        return float(device.loops.replay(*columns, first, len(self.ops) if last is None else last, handles))


def read(path: str) -> Trace:
    from mempool.traces.format import read_columns

    return Trace(read_columns(path))


def streams_for(device: Device, trace: Trace) -> list[Any]:
    torch = device.torch
    return [torch.cuda.default_stream(), *(torch.cuda.Stream() for _ in range(max(trace.streams)))]


def replay_once(device: Device, trace: Trace, streams: Sequence[Any], capacity: int) -> dict[str, Any] | None:
    """One replay that starts with an empty allocator; None when memory ran out."""
    device.empty()
    device.standin.set_capacity(capacity)
    device.torch.cuda.reset_peak_memory_stats()
    device.standin.reset()
    seconds = trace.replay(device, streams)
    counts = device.counted()
    peak = device.torch.cuda.max_memory_reserved()
    device.empty()
    if seconds < 0:
        return None
    return {
        "reserved_per_live": peak / trace.peak_live,
        "ns_per_event": seconds * 1e9 / len(trace.ops),
        "calls": sum(counts[name] for name in CALLS),
        "counts": counts,
    }


def replay(device: Device, path: str, capacity: int, repeats: int) -> dict[str, Any]:
    trace = read(path)
    streams = streams_for(device, trace)
    first = replay_once(device, trace, streams, capacity or PLENTY)  # its calls are counted: nothing is cached yet
    if first is None:
        return {"completes": False}
    again = [replay_once(device, trace, streams, capacity or PLENTY) for _ in range(repeats)]
    first["ns_per_event"] = min(run["ns_per_event"] for run in (first, *again) if run is not None)
    return {"completes": True, "events": len(trace.ops), "peak_live_bytes": trace.peak_live, **first}


def smallest(device: Device, path: str) -> dict[str, Any]:
    """The smallest device on which the trace completes, to 0.1% of the live bytes."""
    trace = read(path)
    streams = streams_for(device, trace)
    low, high = trace.peak_live, 2 * trace.peak_live
    while high - low > trace.peak_live // 1000:
        middle = (low + high) // 2
        if replay_once(device, trace, streams, middle) is None:
            low = middle
        else:
            high = middle
    return {"smallest_bytes": high, "smallest_per_live": high / trace.peak_live}


def pairs(device: Device) -> dict[str, Any]:
    """Nanoseconds for a cached pair, on one thread and on two at the same time."""
    count = 200_000
    out: dict[str, Any] = {}
    for size in (512, 64 << 10, MIB, 20 * MIB):
        device.loops.pairs(size, 1000)
        one = min(device.loops.pairs(size, count) for _ in range(5)) / count
        marks: list[float] = []
        threads = [
            threading.Thread(target=lambda s=size, m=marks: m.append(device.loops.pairs(s, count))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        out[str(size)] = {"one_thread_ns": one * 1e9, "two_threads_ns": max(marks) / count * 1e9}
    return out


def offload_trace(steps: int, seed: int = 1) -> tuple[Trace, list[int]]:
    """A trace of activations that a side stream offloads: it uses each block, too, which is freed soon after."""
    choose = random.Random(seed)
    ops, ids, sizes, streams = (array("q") for _ in range(4))
    marks = []
    next_id = 0

    def add(op: int, block: int, size: int = 0, stream: int = 0) -> None:
        for column, value in zip((ops, ids, sizes, streams), (op, block, size, stream), strict=True):
            column.append(value)

    for _ in range(steps):
        recent: list[int] = []
        for _ in range(96):
            for size in (choose.randrange(4, 64) * MIB, choose.randrange(1, 2048) * 1024):
                add(1, next_id, size)
                add(2, next_id, 0, 1)
                recent.append(next_id)
                next_id += 1
            while len(recent) > 24:
                add(0, recent.pop(0))
        for block in recent:
            add(0, block)
        marks.append(len(ops))
    return Trace((ops, ids, sizes, streams)), marks


def offload(device: Device) -> dict[str, Any]:
    """Replays that trace, both streams stalled until the next step, on a device of 1.2 times its peak live bytes."""
    trace, marks = offload_trace(60)
    streams = [device.torch.cuda.Stream(), device.torch.cuda.Stream()]
    device.empty()
    device.standin.set_capacity(int(1.2 * trace.peak_live))
    device.standin.reset()
    device.torch.cuda.reset_peak_memory_stats()
    first = 0
    completes = True
    for mark in marks:
        with ExitStack() as stack:
            for stream in streams:
                stack.enter_context(device.standin.held(stream))
                # This work never ends: events that are recorded behind it stay pending.
                device.standin.write_later(stream, 0, 0, 0)
            completes = trace.replay(device, streams, first, mark) >= 0
        first = mark
        if not completes:
            break
    counts = device.counted()
    return {
        "completes": completes,
        "peak_live_bytes": trace.peak_live,
        "reserved_per_live": device.torch.cuda.max_memory_reserved() / trace.peak_live,
        "calls": sum(counts[name] for name in CALLS),
        "counts": counts,
    }


def train(device: Device, steps: int = 50) -> dict[str, Any]:
    """Trains a GPT of 124 million parameters with another sequence length in each step."""
    torch = device.torch
    width, heads, layers, words = 768, 12, 12, 50257
    layer = [torch.nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True) for _ in range(layers)]
    model = torch.nn.Sequential(torch.nn.Embedding(words, width), *layer, torch.nn.Linear(width, words)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    choose = random.Random(7)
    device.standin.reset()
    torch.cuda.reset_peak_memory_stats()
    calls = []
    for _ in range(steps):
        tokens = torch.zeros(4, choose.randrange(128, 1025), dtype=torch.int64, device="cuda")
        model(tokens).float().logsumexp(-1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        calls.append(sum(device.standin.count(name) for name in CALLS))
    time.sleep(0.1)  # for autograd's threads
    allocated = torch.cuda.max_memory_allocated()
    return {
        "peak_allocated_bytes": allocated,
        "reserved_per_allocated": torch.cuda.max_memory_reserved() / allocated,
        "calls": calls[-1],
        "calls_in_last_10_steps": calls[-1] - calls[-11],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", required=True)
    parser.add_argument("--loops", required=True)
    parser.add_argument("--capacity", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("task", choices=["replay", "smallest", "pairs", "offload", "train"])
    parser.add_argument("trace", nargs="?")
    options = parser.parse_args(arguments)
    device = Device(options.side, options.loops)
    if options.task == "replay":
        answer = replay(device, options.trace, options.capacity, options.repeats)
    elif options.task == "smallest":
        answer = smallest(device, options.trace)
    else:
        answer = {"pairs": pairs, "offload": offload, "train": train}[options.task](device)
    print(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # without torch's shutdown, which is not measured


if __name__ == "__main__":
    main()
