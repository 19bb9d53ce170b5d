"""One process of the GEMM benchmark: times every implementation of one shape in turn, and the ceilings in between."""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch

from benchmarks.gemm import RING_BYTES
from benchmarks.gemm.implementations import ALL, Implementation, Layer, linear_of


def ring(implementation: Implementation, outputs: int, inputs: int) -> list[Layer]:
    """As many copies of a layer as make up RING_BYTES."""
    size = implementation.weight_bytes(outputs, inputs, implementation.density)
    linear = linear_of(outputs, inputs, implementation.density, implementation.blocks, seed=0)
    copies = implementation.make(linear)
    return [copies() for _ in range(max(2, round(RING_BYTES / size + 0.5)))]


def ceilings_of(path: str) -> Callable[[], dict[str, float]]:
    """A function that measures all three ceilings."""
    library = ctypes.CDLL(path)
    for name in ("read_rate", "int8_rate", "float32_rate"):
        getattr(library, name).restype = ctypes.c_double
    library.read_rate.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    data = torch.ones(RING_BYTES // 256 * 256, dtype=torch.uint8)

    def measure() -> dict[str, float]:
        return {
            "memory": library.read_rate(data.data_ptr(), data.numel()),
            "int8": library.int8_rate(),
            "float32": library.float32_rate(),
        }

    return measure


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--allocator")
    parser.add_argument("--ceilings", required=True)
    parser.add_argument("--outputs", type=int, required=True)
    parser.add_argument("--inputs", type=int, required=True)
    parser.add_argument("--tokens", type=int, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # CSR warns that it is in beta
    measure = ceilings_of(options.ceilings)
    rings: dict[str, list[Layer]] = {}
    missing: dict[str, str] = {}
    for implementation in ALL:
        if options.only and implementation.name not in options.only:
            continue
        try:
            rings[implementation.name] = ring(implementation, options.outputs, options.inputs)
        except (ImportError, RuntimeError) as error:
            missing[implementation.name] = str(error).splitlines()[0]
    limits = {implementation.name: implementation.most_tokens for implementation in ALL}
    times: dict[str, dict[str, list[float]]] = {name: {} for name in rings}
    ceilings: dict[str, list[dict[str, float]]] = {}
    with torch.no_grad():
        for tokens in options.tokens:
            input = torch.randn(tokens, options.inputs)
            timed = [name for name in rings if tokens <= limits[name]]
            for name in timed:
                rings[name][0](input)  # the first call compiles, and initializes lazily
            turn = 0
            for index in range(options.rounds):
                ceilings.setdefault(str(tokens), []).append(measure())
                first = index % len(timed)  # each round begins with another implementation
                for name in timed[first:] + timed[:first]:
                    # Each makes a few calls: the first one finds caches that another implementation filled.
                    calls = []
                    for _ in range(5 if tokens <= 64 else 2):
                        layer = rings[name][turn % len(rings[name])]
                        turn += 1
                        start = time.perf_counter()
                        layer(input)
                        calls.append(time.perf_counter() - start)
                    times[name].setdefault(str(tokens), []).append(statistics.median(calls[1:]))
    json.dump({"seconds": times, "ceilings": ceilings, "missing": missing}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
