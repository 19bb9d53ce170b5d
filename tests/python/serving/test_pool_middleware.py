"""PoolMiddleware over apps of FastAPI: what is charged to a request, what it is told, and what stays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import anyio
import fastapi
import httpx
import pytest
import torch
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse

import mempool
from mempool.serving import PoolMiddleware
from mempool.serving.refusals import refusal_in

MIB = 1 << 20
kept: list[torch.Tensor] = []


def block(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    mempool.enable("cpu")
    yield
    kept.clear()


def held() -> Iterator[torch.Tensor]:
    yield block(2)


Held = Annotated[Any, fastapi.Depends(held)]


def make_app(state: dict[str, Any]) -> fastapi.FastAPI:
    app = fastapi.FastAPI()

    @app.get("/async/{mib}")
    async def asynchronous(mib: int) -> int:
        x = block(mib)
        await asyncio.sleep(0)
        return x.numel()

    @app.get("/sync/{mib}")
    def synchronous(mib: int) -> int:
        return block(mib).numel()

    @app.get("/depends/{mib}")
    def depends(mib: int, x: Held) -> int:
        return block(mib).numel() + x.numel()

    @app.get("/tasks/{mib}")
    async def tasks(mib: int) -> int:
        async with anyio.create_task_group() as group:
            group.start_soon(asyncio.to_thread, block, 2)
            group.start_soon(asynchronous, mib)
        return mib

    @app.get("/wrapped")
    async def wrapped() -> None:
        try:
            block(100)
        except mempool.OutOfMemoryError as error:
            raise RuntimeError("the model failed") from error

    @app.get("/caught")
    async def caught() -> PlainTextResponse:
        try:
            block(100)
        except mempool.OutOfMemoryError:
            return PlainTextResponse("smaller", status_code=200)
        return PlainTextResponse("large")

    @app.get("/caught500")
    async def caught_500() -> PlainTextResponse:
        with contextlib.suppress(mempool.OutOfMemoryError):
            block(100)
        return PlainTextResponse("failed", status_code=500)

    @app.get("/fault")
    async def fault() -> None:
        raise ValueError("a fault of the app")

    @app.get("/stream/{mib}")
    async def stream(mib: int) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            state["streamed"] = block(mib).numel()
            yield b"second"

        return StreamingResponse(parts())

    @app.get("/background/{mib}")
    async def background(mib: int) -> PlainTextResponse:
        def work() -> None:
            state["background"] = mempool.current_pool().name
            state["numel"] = block(mib).numel()

        return PlainTextResponse("later", background=BackgroundTask(work))

    @app.get("/keeps/{mib}")
    async def keeps(mib: int) -> str:
        kept.append(block(mib))
        return "kept"

    @app.get("/orphan")
    async def orphan() -> str:
        async def later() -> None:
            state["orphan_pool"] = mempool.current_pool().name
            await state["go"].wait()
            state["orphan_then"] = mempool.current_pool().name
            kept.append(block(1))

        state["go"] = asyncio.Event()
        state["orphan"] = asyncio.create_task(later())
        await asyncio.sleep(0)
        return "gone"

    @app.websocket("/socket")
    async def socket(connection: fastapi.WebSocket) -> None:
        await connection.accept()
        while True:
            size = int(await connection.receive_text())
            await connection.send_text(str(block(size).numel()))

    return app


def run(app: Any, *paths: str) -> list[httpx.Response]:
    """Requests behind one another, each in a task of its own, as servers have it."""

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://app"
        ) as client:
            await asyncio.create_task(client.get("/async/0"))
            return [await asyncio.create_task(client.get(path)) for path in paths]

    return asyncio.run(main())


def wrap(kind: str, app: fastapi.FastAPI, **options: Any) -> Any:
    """As the outermost wrapper, or inside of Starlette's own middleware."""
    if kind == "outside":
        return PoolMiddleware(app, **options)
    app.add_middleware(PoolMiddleware, **options)
    return app


@pytest.mark.parametrize("kind", ["outside", "add_middleware"])
@pytest.mark.parametrize("path", ["/async/20", "/sync/20", "/depends/15", "/tasks/20", "/wrapped"])
def test_a_request_over_its_limit_is_told_so(kind: str, path: str) -> None:
    app = wrap(kind, make_app({}), limit="16MiB", name="shop")
    refused, served = run(app, path, "/sync/10")
    assert (refused.status_code, served.status_code, served.json()) == (503, 200, 10 * MIB)
    told = refused.json()
    assert (told["error"], told["reason"], told["pool"], told["limit"]) == (
        "out_of_memory",
        "pool_limit",
        "shop request",
        16 * MIB,
    )
    assert told["requested"] + told["in_use"] > 16 * MIB
    assert "retry-after" not in refused.headers
    assert refused.headers["content-type"] == "application/json"


@pytest.mark.parametrize("kind", ["outside", "add_middleware"])
def test_what_others_hold_may_pass(kind: str) -> None:
    app = wrap(kind, make_app({}), limit="64MiB", app_limit="24MiB", name="shop")
    kept_one, refused, hopeless = run(app, "/keeps/10", "/sync/20", "/sync/30")
    assert (kept_one.status_code, refused.status_code, hopeless.status_code) == (200, 503, 503)
    told = refused.json()
    assert (told["pool"], told["limit"], told["in_use"]) == ("shop", 24 * MIB, 10 * MIB)
    assert refused.headers["retry-after"] == "1"
    assert "retry-after" not in hopeless.headers  # the app's limit is below it at any time


def test_the_limit_of_the_device_may_pass_too() -> None:
    app = PoolMiddleware(make_app({}), limit="64MiB")
    mempool.trim("cpu")
    kept.append(block(20))
    held = mempool.memory_reserved("cpu")
    mempool.set_limit(held + 8 * MIB, "cpu")
    try:
        (refused,) = run(app, "/sync/20")
    finally:
        mempool.set_limit(None, "cpu")
    told = refused.json()
    assert (told["reason"], told["limit"], refused.headers["retry-after"]) == ("device_limit", held + 8 * MIB, "1")
    assert 20 * MIB <= told["in_use"] <= held + 8 * MIB


@pytest.mark.parametrize("kind", ["outside", "add_middleware"])
def test_answers_of_the_app_stay_its_own(kind: str) -> None:
    app = wrap(kind, make_app({}), limit="16MiB")
    caught, failed, fault, missing = run(app, "/caught", "/caught500", "/fault", "/nowhere")
    assert (caught.status_code, caught.text) == (200, "smaller")
    assert (failed.status_code, failed.json()["requested"]) == (503, None)
    assert (fault.status_code, fault.text) == (500, "Internal Server Error")
    assert missing.status_code == 404


def test_what_follows_the_response_is_charged_too() -> None:
    state: dict[str, Any] = {}
    app = PoolMiddleware(make_app(state), limit="16MiB", name="shop")
    (answer,) = run(app, "/background/10")
    assert (answer.text, state["background"], state["numel"]) == ("later", "shop request", 10 * MIB)
    with pytest.raises(mempool.OutOfMemoryError):
        run_raising(app, "/background/20")


def run_raising(app: Any, path: str) -> httpx.Response:
    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            return await asyncio.create_task(client.get(path))

    return asyncio.run(main())


def test_a_stream_that_has_begun_is_ended() -> None:
    state: dict[str, Any] = {}
    app = PoolMiddleware(make_app(state), limit="16MiB")
    (answer,) = run(app, "/stream/10")
    assert (answer.status_code, answer.content, state["streamed"]) == (200, b"firstsecond", 10 * MIB)
    ended: BaseException | None = None
    try:
        run_raising(app, "/stream/20")
    except BaseException as error:  # a group, on some versions of Starlette
        ended = error
    assert ended is not None
    assert refusal_in(ended, app.pool) is not None


def test_what_stays_is_the_apps() -> None:
    app = PoolMiddleware(make_app({}), limit="16MiB", app_limit="64MiB", name="shop")
    run(app, "/keeps/3", "/sync/10", "/async/5")
    gc.collect()
    assert app.pool.used_bytes() == 3 * MIB
    requests = [each for each in mempool.list_pools("cpu") if each.name == "shop request"]
    assert [(each.used_bytes, each.closed, each.parent) for each in requests] == [(3 * MIB, True, "shop")]
    kept.clear()
    assert app.pool.used_bytes() == 0
    assert not [each for each in mempool.list_pools("cpu") if each.name == "shop request"]


def test_a_task_that_outlives_its_request_goes_on_in_the_apps_pool() -> None:
    state: dict[str, Any] = {}
    app = PoolMiddleware(make_app(state), limit="16MiB", name="shop")

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            await asyncio.create_task(client.get("/async/0"))
            await asyncio.create_task(client.get("/orphan"))
            state["go"].set()
            await state["orphan"]

    asyncio.run(main())
    assert (state["orphan_pool"], state["orphan_then"]) == ("shop request", "shop")
    assert app.pool.used_bytes() == MIB


def test_a_thread_that_outlives_its_request_keeps_the_pool() -> None:
    entered, go, seen = threading.Event(), threading.Event(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        def work() -> None:
            entered.set()
            go.wait(30)
            seen.append((mempool.current_pool().name, block(1).numel()))

        await asyncio.to_thread(work)

    wrapped = PoolMiddleware(app, limit="16MiB", name="shop")

    async def main() -> None:
        async def call() -> None:
            await wrapped({"type": "http"}, None, None)  # type: ignore[arg-type]

        with mempool.follow_context():
            task = asyncio.create_task(call())
            while not entered.is_set():
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        go.set()

    asyncio.run(main())
    assert seen == [("shop request", MIB)]
    gc.collect()
    assert wrapped.pool.used_bytes() == 0


def test_a_websocket_is_closed_with_try_again_later() -> None:
    app = PoolMiddleware(make_app({}), limit="16MiB")
    sent: list[dict[str, Any]] = []
    texts = iter(["10", "20"])

    async def receive() -> dict[str, Any]:
        if not sent:
            return {"type": "websocket.connect"}
        return {"type": "websocket.receive", "text": next(texts)}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    scope = {"type": "websocket", "path": "/socket", "headers": [], "query_string": b"", "subprotocols": []}
    asyncio.run(app(scope, receive, send))
    assert [each["type"] for each in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert sent[1]["text"] == str(10 * MIB)
    assert sent[2]["code"] == 1013


def test_a_server_that_shuts_down_has_its_loop_back() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert mempool.current_pool() is None
        await receive()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        messages = asyncio.Queue[dict[str, str]]()
        wrapped = PoolMiddleware(app, limit="16MiB")
        task = asyncio.create_task(wrapped({"type": "lifespan"}, messages.get, None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert loop.get_task_factory() is not None
        messages.put_nowait({"type": "lifespan.shutdown"})
        await task
        assert loop.get_task_factory() is None

    asyncio.run(main())


def test_without_mempool_it_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    mempool.disable("cpu")
    monkeypatch.setenv("MEMPOOL_DISABLE", "1")
    with pytest.warns(UserWarning, match="'app' have no memory limits: MEMPOOL_DISABLE=1"):
        app = PoolMiddleware(make_app({}), limit="16MiB")
    (answer,) = run(app, "/sync/20")
    assert answer.json() == 20 * MIB


@pytest.mark.parametrize("options", [{"limit": "lots"}, {"app_limit": -1}, {"device": "tpu"}, {"name": ""}])
def test_wrong_options_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(mempool.ConfigError):
        PoolMiddleware(make_app({}), **options)
