"""Times a FastAPI endpoint that does nothing below uvicorn, plain and within PoolMiddleware.

    python -m benchmarks.middleware [--rounds N] [--requests N] [--out benchmarks/results]

In one process: each request is a task of its own, as servers have it, with nothing of a server around it, and the apps
take turns. That shows what the middleware adds with the least noise. Below a server: each app has a process of its own,
and batches of requests to them take turns. The latency is that of one client
that waits for each answer. The CPU time a request is that of the server's process, both for that client (the server
sleeps between two requests, and finds its caches cold) and for eight connections that keep the server busy. uvloop and
httptools are measured where they are installed.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
CONNECTIONS = 8
COLUMNS = {"busy_cpu_us": 1, "cpu_us": 1, "p50_ms": 3}  # with the digits that are shown
SERVERS = (("asyncio", "h11"), ("uvloop", "httptools"))


async def in_process(app: Any, requests: int) -> float:
    """CPU microseconds a request of an ASGI app, each in a task of its own."""
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "http_version": "1.1"}

    async def receive() -> Json:
        return {"type": "http.request"}

    async def send(message: Json) -> None:
        if message.get("status", 200) != 200:
            raise RuntimeError(str(message))

    loop = asyncio.get_running_loop()
    before = time.process_time()
    for _ in range(requests):
        await loop.create_task(app(dict(scope), receive, send))
    return (time.process_time() - before) / requests * 1e6


def in_process_rows(rounds: int, requests: int) -> dict[str, list[Json]]:
    """The same batches of both apps, in turn, each in an event loop of its own."""
    names: dict[str, Any] = {}
    exec(APP, names)
    rows: dict[str, list[Json]] = {"plain": [], "within": []}
    for _ in range(10 * rounds + 1):
        for app, results in rows.items():
            results.append({"busy_cpu_us": asyncio.run(in_process(names[app], requests))})
    return {app: results[1:] for app, results in rows.items()}


@contextmanager
def server(app: str, loop: str, http_parser: str) -> Iterator[tuple[int, int, http.client.HTTPConnection]]:
    """A server on loopback, which ends after its requests if nobody stops it: its pid, its port and a connection."""
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
            yield process.pid, port, connection
        finally:
            process.terminate()
            process.wait(30)


def cpu_us(pid: int) -> float:
    """CPU time that the process has had, from its scheduler's clock, in microseconds."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e3


def one_by_one(pid: int, connection: http.client.HTTPConnection, requests: int) -> Json:
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


def busy(pid: int, port: int, requests: int) -> float:
    """CPU microseconds a request, of as many as are answered while every connection has one under way."""
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as open_sockets, selectors.DefaultSelector() as selector:
        address = ("127.0.0.1", port)
        made = [open_sockets.enter_context(socket.create_connection(address, timeout=60)) for _ in range(CONNECTIONS)]
        for each in made:
            selector.register(each, selectors.EVENT_READ)
            each.sendall(request)
        received = dict.fromkeys(made, b"")
        before, answered = cpu_us(pid), 0
        while answered < requests:
            for key, _ in selector.select(60):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                received[ready] += ready.recv(4096)
                if not received[ready].startswith(b"HTTP/1.1 200 "):
                    raise RuntimeError(f"{received[ready]!r}")
                if received[ready].endswith(b"\r\n\r\n1"):  # some servers send head and body one after the other
                    received[ready] = b""
                    answered += 1
                    ready.sendall(request)
        return (cpu_us(pid) - before) / answered


def server_rows(
    loop: str, http_parser: str, given: argparse.Namespace, show: Callable[[str], None]
) -> dict[str, list[Json]]:
    """The batches of both apps, each below a server of its own."""
    rows: dict[str, list[Json]] = {"plain": [], "within": []}
    with ExitStack() as running:
        sides = {app: running.enter_context(server(app, loop, http_parser)) for app in rows}
        for _ in range(given.rounds + 1):
            for app, results in rows.items():
                pid, port, connection = sides[app]
                result = one_by_one(pid, connection, given.requests)
                results.append({"busy_cpu_us": busy(pid, port, 4 * given.requests), **result})
            show("")
    return {app: results[1:] for app, results in rows.items()}  # the first warms the server up


def main() -> None:
    """Reads the command line, runs the servers, prints the table and writes `middleware.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=300, help="in a batch")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    given = parser.parse_args()
    console = table_console()
    servers = [pair for pair in SERVERS if all(find_spec(name) for name in pair if name != "asyncio")]
    report: Json = {"environment": environment_facts(threads=1), "servers": {}}
    table = Table(caption=f"{report['environment']['cpu']}; median (smallest-largest) of {given.rounds} batches")
    for column in ("server", ""):
        table.add_column(column)
    for column in ("busy: CPU us a request", "one by one: CPU us", "one by one: p50 ms"):
        table.add_column(column, justify="right")
    with progress(console, 1 + len(servers) * (given.rounds + 1)) as show:
        show("in process")
        report["servers"]["in process"] = in_process_rows(given.rounds, given.requests)
        for loop, http_parser in servers:
            name = f"{http_parser}, {loop}"
            show(name)
            report["servers"][name] = server_rows(loop, http_parser, given, show)
    for name, rows in report["servers"].items():
        pairs = list(zip(rows["within"], rows["plain"], strict=True))
        for app, results in (*rows.items(), ("added", [{k: a[k] - b[k] for k in a} for a, b in pairs])):
            cells = {key: Spread.of([row[key] for row in results]).text(COLUMNS[key]) for key in results[0]}
            table.add_row(name, app, *(cells.get(key, "") for key in COLUMNS))
    console.print(table)
    console.print(f"{os.path.relpath(write_report(given.out, 'middleware', report))} has every number.")


if __name__ == "__main__":
    main()
