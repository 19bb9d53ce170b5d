"""PoolMiddleware below real servers: refusals, clients that go away, faults, and nothing that stays."""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import free_port, running

pytest.importorskip("uvicorn")

REQUESTS = int(os.environ.get("MEMPOOL_TEST_REQUESTS", "1200"))
CLIENTS = 3
MOST_GROWTH = 8 << 20  # of resident bytes, in the second half
APP = """
import asyncio, gc
import fastapi, torch, mempool
from mempool.serving import PoolMiddleware

app = fastapi.FastAPI()
MIB = 1 << 20

def block(mib):
    return torch.full((mib * MIB,), 1, dtype=torch.uint8)

@app.get("/async/{mib}")
async def asynchronous(mib: int) -> int:
    x = block(mib)
    await asyncio.sleep(0.001)
    return x.numel()

@app.get("/sync/{mib}")
def synchronous(mib: int) -> int:
    return block(mib).numel()

@app.get("/slow/{mib}")
async def slow(mib: int) -> int:
    x = block(mib)
    await asyncio.sleep(0.2)
    return x.numel()

@app.get("/fault")
def fault() -> None:
    raise ValueError("a fault of the app")

@app.get("/state")
async def state() -> dict:
    gc.collect()
    mempool.empty_cache()
    requests = [each for each in mempool.list_pools("cpu") if each.name == "shop request"]
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {"used": served.pool.used_bytes(), "pools": len(requests), "pages": pages}

served = PoolMiddleware(app, limit="16MiB", name="shop")
"""


@pytest.fixture(params=[("asyncio", "h11"), ("uvloop", "httptools")], ids="-".join)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A server on loopback, which ends after its requests if nobody stops it."""
    loop, http = request.param
    for name in (loop, http):
        if name in ("uvloop", "httptools"):
            pytest.importorskip(name)
    (tmp_path / "app.py").write_text(APP)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app:served", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--loop", loop, "--http", http, "--log-level", "critical", "--limit-max-requests", "10000000"]
    with running(command, port, tmp_path) as served:
        yield served


def get(address: str, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def leave(address: str, path: str) -> None:
    """Asks, and goes away before the answer."""
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        time.sleep(0.005)


def problems_of(address: str, seed: int, requests: int, note: Callable[[str], None]) -> None:
    chance = random.Random(seed)
    for _ in range(requests):
        kind = chance.random()
        endpoint = chance.choice(("async", "sync"))
        if kind < 0.1:
            status, body = get(address, f"/{endpoint}/20")
            if status != 503 or json.loads(body)["requested"] != 20 << 20:
                note(f"over its limit: {status} {body!r}")
        elif kind < 0.2:
            leave(address, f"/slow/{chance.randint(1, 15)}")
        elif kind < 0.21:
            status, body = get(address, "/fault")
            if status != 500:
                note(f"a fault: {status} {body!r}")
        else:
            mib = chance.randint(0, 15)
            status, body = get(address, f"/{endpoint}/{mib}")
            if (status, body) != (200, str(mib << 20).encode()):
                note(f"within its limit: {status} {body!r}")


def state_of(address: str) -> dict[str, int]:
    """Once those that were left have ended."""
    deadline = time.monotonic() + 30
    while True:
        state: dict[str, int] = json.loads(get(address, "/state")[1])
        if (state["used"], state["pools"]) == (0, 1) or time.monotonic() > deadline:  # its own
            return state
        time.sleep(0.1)


def play(address: str, seeds: range, requests: int) -> list[str]:
    problems: list[str] = []
    arguments = [(address, seed, requests // CLIENTS, problems.append) for seed in seeds]
    threads = [threading.Thread(target=problems_of, args=each) for each in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return problems


@pytest.mark.timeout(300 + REQUESTS // 50)
def test_nothing_stays_and_no_request_is_touched_by_another(address: str) -> None:
    resident = []
    for half in range(2):
        assert not play(address, range(half * CLIENTS, (half + 1) * CLIENTS), REQUESTS // 2)
        state = state_of(address)
        assert (state["used"], state["pools"]) == (0, 1)
        resident.append(state["pages"] * os.sysconf("SC_PAGE_SIZE"))
    assert resident[1] <= resident[0] + MOST_GROWTH
