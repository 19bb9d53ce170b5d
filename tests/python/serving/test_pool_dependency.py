"""A dependency of FastAPI that gives single endpoints a pool for each request."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
import torch

import mempool
from mempool.serving import PoolDependency, PoolMiddleware

fastapi = pytest.importorskip("fastapi")
from fastapi.testclient import TestClient  # noqa: E402

MIB = 1 << 20


def block(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8)


def app_with(dependency: PoolDependency) -> fastapi.FastAPI:
    app = fastapi.FastAPI()
    own = fastapi.Depends(dependency)
    within = [own]

    @app.get("/async/{mib}", dependencies=within)
    async def asynchronous(mib: int) -> int:
        await asyncio.sleep(0)
        return block(mib).numel()

    @app.get("/sync/{mib}", dependencies=within)
    def synchronous(mib: int) -> int:
        return block(mib).numel()

    @app.get("/pool")
    def pool(pool: Any = own) -> list[int]:
        held = block(3)
        return [pool.used_bytes(), held.numel()]

    @app.get("/fault", dependencies=within)
    def fault() -> None:
        raise KeyError("a fault of the app")

    @app.get("/unbounded/{mib}")
    async def unbounded(mib: int) -> int:
        return block(mib).numel()

    return app


def test_requests_of_its_endpoints_alone_are_bounded() -> None:
    dependency = PoolDependency("16MiB", name="embed")
    with TestClient(PoolMiddleware(app_with(dependency)), raise_server_exceptions=False) as client:
        for path in ("/async", "/sync"):
            assert client.get(f"{path}/10").json() == 10 * MIB
            refused = client.get(f"{path}/20")
            told = refused.json()["detail"]
            assert refused.status_code == 503
            assert (told["reason"], told["pool"], told["requested"]) == ("pool_limit", "embed request", 20 * MIB)
            assert "retry-after" not in refused.headers
        assert client.get("/pool").json() == [3 * MIB, 3 * MIB]
        assert client.get("/fault").status_code == 500
        assert client.get("/unbounded/20").json() == 20 * MIB
    assert dependency.pool.used_bytes() == 0
    gc.collect()  # of the exceptions that FastAPI made
    assert [each.name for each in mempool.list_pools("cpu") if each.name.startswith("embed")] == ["embed"]


def test_others_in_its_way_may_pass() -> None:
    dependency = PoolDependency(total_limit="16MiB")
    kept = []
    app = app_with(dependency)

    @app.get("/keep", dependencies=[fastapi.Depends(dependency)])
    def keep() -> None:
        kept.append(block(10))

    with TestClient(PoolMiddleware(app)) as client:
        client.get("/keep")
        refused = client.get("/sync/10")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_a_request_that_began_before_pools_followed_warns_once() -> None:
    dependency = PoolDependency("16MiB")
    client = TestClient(app_with(dependency))  # a loop for each request
    with pytest.warns(RuntimeWarning, match="first await"):
        assert client.get("/sync/20").status_code == 503
    assert client.get("/async/20").status_code == 200
    assert client.get("/sync/20").status_code == 503
    assert dependency.pool.used_bytes() == 0
