"""Times linear layers on packed weights beside fbgemm, oneDNN, ONNX Runtime, compiled torch and CSR.

    python -m benchmarks.gemm.run [--threads 1 2] [--tokens 1 64] [--rounds N] [--out benchmarks/results]

Writes a table for each shape, ``gemm.json`` and a roofline plot, ``gemm.png``. A time includes the quantization of the
activations. ONNX Runtime is left out where ``onnxruntime`` and ``onnx`` are not installed. Ends with status 2 if a
child failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import (
    DEFAULT_OUT,
    PEER,
    BenchmarkError,
    Json,
    Spread,
    compile_loops,
    environment_facts,
    progress,
    run_child,
    spread_json,
    table_console,
    write_report,
)
from benchmarks.gemm import OURS, SHAPES, TOKENS
from benchmarks.gemm.implementations import ALL
from mempool._core import kernel_isa

WORKER = "benchmarks.gemm.worker"
_BY_NAME = {implementation.name: implementation for implementation in ALL}


def ideal_seconds(name: str, shape: tuple[int, int], tokens: int, ceilings: Json, threads: int) -> float | None:
    """The least time that a call can take: by the memory's bandwidth, or by the arithmetic's throughput.

    The ceilings are those of one thread. That of arithmetic is multiplied by `threads`, that of memory is not, since
    threads share it: with several threads a share of the memory's ceiling can pass 1.
    """
    implementation = _BY_NAME[name]
    outputs, inputs = shape
    read = implementation.weight_bytes(outputs, inputs, implementation.density) + 4 * tokens * (outputs + inputs)
    seconds = read / (ceilings["memory"] * 1e9)
    if implementation.arithmetic:
        rate = ceilings[implementation.arithmetic]
        if rate == 0:
            return None
        operations = 2 * tokens * outputs * inputs * (implementation.density if implementation.skips else 1)
        seconds = max(seconds, operations / (rate * threads * 1e9))
    return seconds


def summarize(shape: tuple[int, int], threads: int, run: Json) -> Json:
    """The spreads of time, of the ratio to our dense layer, and of the share of the ceiling, by number of tokens."""
    rows = []
    for name, by_tokens in run["seconds"].items():
        for tokens, seconds in by_tokens.items():
            ceilings = run["ceilings"][tokens]
            dense = run["seconds"].get(OURS, {}).get(tokens, seconds)
            ideal = [ideal_seconds(name, shape, int(tokens), ceiling, threads) for ceiling in ceilings]
            shares = [best / spent for best, spent in zip(ideal, seconds, strict=True) if best is not None]
            rows.append(
                {
                    "name": name,
                    "tokens": int(tokens),
                    "seconds": spread_json(seconds),
                    "speed_to_int8": spread_json([ours / spent for ours, spent in zip(dense, seconds, strict=True)]),
                    "share_of_ceiling": spread_json(shares) if shares and _BY_NAME[name].arithmetic else None,
                }
            )
    rates = [ceiling for of_tokens in run["ceilings"].values() for ceiling in of_tokens]
    return {
        "outputs": shape[0],
        "inputs": shape[1],
        "threads": threads,
        "ceilings": {kind: spread_json([rate[kind] for rate in rates]) for kind in rates[0]},
        "missing": run["missing"],
        "rows": rows,
        "runs": run,
    }


def table_of(result: Json, facts: Json) -> Table:
    """A table with a row for each implementation: milliseconds, speed against our dense layer, share of the ceiling."""
    ceilings = {kind: Spread(**spread).text(0) for kind, spread in result["ceilings"].items()}
    table = Table(
        title=f"{result['outputs']} x {result['inputs']}, {result['threads']} thread(s): ms, times the speed of "
        f"{OURS}, share of the ceiling",
        caption=f"{facts['cpu']}, torch {facts['torch']}, mempool {facts['mempool_commit']} "
        f"({facts['kernels']}), oneDNN {facts['onednn_isa']}; one thread: {ceilings['memory']} GB/s, "
        f"int8 {ceilings['int8']} GOP/s, float32 {ceilings['float32']} GFLOP/s; medians",
    )
    tokens = sorted({row["tokens"] for row in result["rows"]})
    cells = {(row["name"], row["tokens"]): row for row in result["rows"]}
    table.add_column("tokens")
    for count in tokens:
        table.add_column(str(count), justify="right")
    for name in dict.fromkeys(row["name"] for row in result["rows"]):
        table.add_row(name, *(_cell(cells.get((name, count))) for count in tokens))
    return table


def _cell(row: Json | None) -> str:
    if row is None:
        return ""
    share = row["share_of_ceiling"]
    text = f"{1e3 * row['seconds']['median']:.2f}  {row['speed_to_int8']['median']:.2f}x"
    return f"{text}  {share['median']:.0%}" if share else text


def plot(results: Sequence[Json], path: Path) -> None:
    """Plots rooflines: operations per second over operations per byte read, by shape and number of threads."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(5 * len(results), 4.2), squeeze=False, sharey=True)
    for axis, result in zip(axes[0], results, strict=True):
        shape = (result["outputs"], result["inputs"])
        memory, int8 = result["ceilings"]["memory"]["median"], result["ceilings"]["int8"]["median"]
        intensities = [2.0**i for i in range(1, 13)]
        axis.plot(
            intensities,
            [min(memory * i, int8 * result["threads"] or memory * i) for i in intensities],
            color="black",
            linewidth=1,
        )
        for name in dict.fromkeys(row["name"] for row in result["rows"]):
            points = [_point(row, shape) for row in result["rows"] if row["name"] == name]
            axis.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, linewidth=0.8, label=name)
        axis.set(xscale="log", yscale="log", xlabel="dense operations for each byte of weights read")
        axis.set_title(f"{shape[0]} x {shape[1]}, {result['threads']} thread(s)", fontsize=9)
    axes[0][0].set_ylabel("dense GOP/s")
    axes[0][-1].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _point(row: Json, shape: tuple[int, int]) -> tuple[float, float]:
    implementation = _BY_NAME[row["name"]]
    operations = 2 * row["tokens"] * shape[0] * shape[1]
    read = implementation.weight_bytes(*shape, implementation.density)
    return operations / read, operations / row["seconds"]["median"] / 1e9


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="a table for each of these numbers")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), help="columns of the tables")
    parser.add_argument("--shapes", nargs="+", default=[f"{n}x{k}" for n, k in SHAPES], help="outputs x inputs")
    parser.add_argument("--only", nargs="+", default=[], choices=list(_BY_NAME), help="these alone")
    parser.add_argument("--rounds", type=int, default=9, help="of every implementation in turn")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of gemm.json and gemm.png")
    options = parser.parse_args(arguments)
    if min(options.rounds, *options.threads, *options.tokens) < 1:
        parser.error("--rounds, --threads and --tokens must be at least 1")
    try:
        options.shapes = [tuple(int(size) for size in shape.split("x")) for shape in options.shapes]
    except ValueError:
        parser.error("--shapes are like 4096x11008")
    return options


def measure(options: argparse.Namespace, ceilings: Path) -> list[Json]:
    """The summary for each shape and number of threads."""
    results: list[Json] = []
    with progress(Console(stderr=True), len(options.shapes) * len(options.threads)) as show:
        for threads in options.threads:
            for shape in options.shapes:
                show(f"{shape[0]} x {shape[1]}, {threads} thread(s)")
                arguments = [f"--ceilings={ceilings}", f"--outputs={shape[0]}", f"--inputs={shape[1]}"]
                arguments += [f"--rounds={options.rounds}", f"--threads={threads}"]
                arguments += ["--tokens", *map(str, options.tokens), "--only", *options.only]
                results.append(summarize(shape, threads, run_child(WORKER, arguments, threads, PEER)))
                show("")
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit status."""
    options = parse(arguments)
    console = table_console()
    facts: dict[str, Any] = environment_facts(max(options.threads))
    facts |= {"onednn_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "as the machine has it")}
    facts |= {"kernels": kernel_isa()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            results = measure(options, compile_loops(Path(__file__).with_name("ceilings.cpp"), Path(folder), []))
    except BenchmarkError as error:
        console.print(f"[bold red]failed:[/] {error}", highlight=False)
        return 2
    settings = {"rounds": options.rounds, "tokens": options.tokens}
    report = {"benchmark": "gemm", "environment": facts, "settings": settings, "results": results}
    path = write_report(options.out, "gemm", report)
    plot(results, options.out / "gemm.png")
    for result in results:
        console.print(table_of(result, facts))
        for name, reason in result["missing"].items():
            console.print(f"left out: {name}: {reason}", highlight=False)
    console.print(f"written to {path}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
