"""Times a FastAPI endpoint that does nothing below uvicorn, plain and within PoolMiddleware.

    python -m benchmarks.middleware [--rounds N] [--requests N] [--out benchmarks/results]

Each app has a server process of its own, and batches of requests to them take turns, over a connection each. The CPU
time is that of the server's process; the latency is the client's. uvloop and httptools are measured where they are
installed.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from rich.table import Table

from benchmarks.common import (
    DEFAULT_OUT,
    Json,
    Spread,
    child_environment,
    environment_facts,
    progress,
    table_console,
    write_report,
)

APP = """
import fastapi
from mempool.serving import PoolMiddleware

plain = fastapi.FastAPI()

@plain.get("/")
async def nothing() -> int:
    return 1

within = PoolMiddleware(plain, limit="64MiB")
"""
SERVERS = (("asyncio", "h11"), ("uvloop", "httptools"))


@contextmanager
def server(app: str, loop: str, http_parser: str) -> Iterator[tuple[int, http.client.HTTPConnection]]:
    """A server on loopback, which ends after its requests if nobody stops it; its pid and a connection to it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "app.py").write_text(APP)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", f"app:{app}", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--loop", loop, "--http", http_parser, "--log-level", "error", "--no-access-log"]
        command += ["--limit-max-requests", "10000000"]
        process = subprocess.Popen(command, cwd=folder, env=child_environment(1)[0])
        try:
            deadline = time.monotonic() + 60
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            while True:
                try:
                    connection.connect()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
            yield process.pid, connection
        finally:
            process.terminate()
            process.wait(30)


def cpu_us(pid: int) -> float:
    """CPU time that the process has had, from its scheduler's clock, in microseconds."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e3


def batch(pid: int, connection: http.client.HTTPConnection, requests: int) -> Json:
    """CPU microseconds a request, and the median latency of one."""
    latencies = []
    before = cpu_us(pid)
    for _ in range(requests):
        began = time.perf_counter()
        connection.request("GET", "/")
        answer = connection.getresponse()
        body = answer.read()
        latencies.append(time.perf_counter() - began)
        if (answer.status, body) != (200, b"1"):
            raise RuntimeError(f"{answer.status} {body!r}")
    return {"cpu_us": (cpu_us(pid) - before) / requests, "p50_ms": statistics.median(latencies) * 1e3}


def main() -> None:
    """Reads the command line, runs the servers, prints the table and writes `middleware.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=300, help="in a batch")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    given = parser.parse_args()
    console = table_console()
    servers = [pair for pair in SERVERS if all(find_spec(name) for name in pair if name != "asyncio")]
    report: Json = {"environment": environment_facts(threads=1), "servers": {}}
    table = Table(caption=f"{report['environment']['cpu']}; median (smallest-largest) of {given.rounds} batches")
    for column in ("server", "", "CPU us a request", "p50 ms"):
        table.add_column(column, justify="right" if column[-1:] in ("t", "s") else "left")
    with progress(console, len(servers) * given.rounds) as show:
        for loop, http_parser in servers:
            name = f"{http_parser}, {loop}"
            show(name)
            rows: dict[str, list[Json]] = {"plain": [], "within": []}
            with ExitStack() as running:
                sides = {app: running.enter_context(server(app, loop, http_parser)) for app in rows}
                for pid, connection in sides.values():
                    batch(pid, connection, given.requests)
                for _ in range(given.rounds):
                    for app, results in rows.items():
                        results.append(batch(*sides[app], given.requests))
                    show("")
            pairs = list(zip(rows["within"], rows["plain"], strict=True))
            added = {key: [a[key] - b[key] for a, b in pairs] for key in ("cpu_us", "p50_ms")}
            for app, results in rows.items():
                cells = [Spread.of([row[key] for row in results]) for key in ("cpu_us", "p50_ms")]
                table.add_row(name, app, cells[0].text(1), cells[1].text(3))
            table.add_row(name, "added", *(Spread.of(added[key]).text(d) for key, d in (("cpu_us", 1), ("p50_ms", 3))))
            report["servers"][name] = rows
    console.print(table)
    console.print(f"{os.path.relpath(write_report(given.out, 'middleware', report))} has every number.")


if __name__ == "__main__":
    main()
