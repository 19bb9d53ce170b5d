"""WSGI apps and functions whose every call has a pool of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch

import mempool
from mempool.serving import WsgiPoolMiddleware, limit_memory

MIB = 1 << 20


@pytest.fixture(autouse=True)
def enabled() -> None:
    mempool.enable("cpu")


def block(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8)


class Server:
    """Takes an answer as a WSGI server does."""

    def __init__(self) -> None:
        self.status, self.headers, self.written = "", {}, b""

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        if exc_info is not None and self.status:
            raise exc_info[1]
        self.status, self.headers = status, dict(headers)
        return self.write

    def write(self, part: bytes) -> None:
        self.written += part

    def get(self, app: Callable[..., Iterable[bytes]]) -> bytes:
        body = app({}, self.start_response)
        try:
            for part in body:
                assert self.status
                self.written += part
        finally:
            if hasattr(body, "close"):
                body.close()
        return self.written


def served(app: Callable[..., Iterable[bytes]], **options: Any) -> tuple[str, dict[str, str], bytes]:
    server = Server()
    body = server.get(WsgiPoolMiddleware(app, limit="16MiB", name="shop", **options))
    return server.status, server.headers, body


def plain(size: int) -> Callable[..., Iterable[bytes]]:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        x = block(size)
        start_response("200 OK", [("content-type", "text/plain")])
        return [str(x.numel()).encode()]

    return app


def test_a_request_over_its_limit_is_told_so() -> None:
    assert served(plain(10)) == ("200 OK", {"content-type": "text/plain"}, str(10 * MIB).encode())
    status, headers, body = served(plain(20))
    told = json.loads(body)
    assert status == "503 Service Unavailable"
    assert (told["reason"], told["pool"], told["requested"]) == ("pool_limit", "shop request", 20 * MIB)
    assert headers == {"content-type": "application/json", "content-length": str(len(body))}


def test_what_others_hold_may_pass() -> None:
    others = mempool.MemoryPool("others")
    middleware = WsgiPoolMiddleware(plain(15), limit="16MiB", app_limit="20MiB", name="shop")
    kept = mempool.bind(mempool.MemoryPool("held", parent=middleware.pool), block)(10)
    server = Server()
    assert json.loads(server.get(middleware))["pool"] == "shop"
    assert server.headers["retry-after"] == "1"
    del kept, others
    assert Server().get(middleware) == str(15 * MIB).encode()


def test_parts_of_the_body_are_charged_too() -> None:
    closed: list[str] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            yield mempool.current_pool().name.encode()
            block(environ.get("mib", 20))
            yield b"second"
        finally:
            closed.append(mempool.current_pool().name)

    server = Server()
    with pytest.raises(mempool.OutOfMemoryError):  # the head is out: the server ends the stream
        server.get(WsgiPoolMiddleware(app, limit="16MiB", name="shop"))
    assert (server.status, server.written, closed) == ("200 OK", b"shop request", ["shop request"])
    assert mempool.current_pool() is None


def test_a_failure_that_the_app_has_made_of_it_is_replaced() -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        try:
            block(20)
        except mempool.OutOfMemoryError:
            start_response("500 Internal Server Error", [])
            return [b"failed"]
        raise AssertionError("no refusal")

    status, _, body = served(app)
    assert (status, json.loads(body)["limit"]) == ("503 Service Unavailable", 16 * MIB)

    def fault(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("500 Internal Server Error", [])
        return [b"failed"]

    assert served(fault)[::2] == ("500 Internal Server Error", b"failed")


def test_an_app_may_push_its_body() -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        write(b"pushed ")
        return [b"returned"]

    assert served(app)[::2] == ("200 OK", b"pushed returned")


def test_each_call_of_a_function_has_a_limit() -> None:
    seen: list[str] = []

    @limit_memory("16MiB", total_limit="24MiB", name="embed")
    def embed(mib: int) -> torch.Tensor:
        """Embeds."""
        seen.append(mempool.current_pool().name)
        return block(mib)

    assert (embed.__name__, embed.__doc__) == ("embed", "Embeds.")
    first = embed(10)
    with pytest.raises(mempool.OutOfMemoryError) as refused:
        embed(17)
    assert mempool.oom_info(refused.value)["pool"] == "embed request"
    with pytest.raises(mempool.OutOfMemoryError) as refused:
        embed(15)
    assert mempool.oom_info(refused.value)["pool"] == "embed"
    del first, refused
    assert embed(15).numel() == 15 * MIB
    assert set(seen) == {"embed request"}
    assert mempool.current_pool() is None


def test_each_call_of_a_coroutine_function_has_a_limit() -> None:
    @limit_memory("16MiB")
    async def embed(mib: int) -> int:
        x = block(mib)
        await asyncio.sleep(0)
        return x.numel() + block(1).numel()

    async def main() -> list[Any]:
        return await asyncio.gather(*(embed(mib) for mib in (10, 20, 15)), return_exceptions=True)

    good, bad, also_good = asyncio.run(main())
    assert (good, also_good) == (11 * MIB, 16 * MIB)
    assert isinstance(bad, mempool.OutOfMemoryError)


def test_threads_that_call_first_share_one_pool() -> None:
    @limit_memory(None, total_limit="64MiB", name="shared")
    def work() -> None:
        barrier.wait(30)

    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work_pool = [each for each in mempool.list_pools("cpu") if each.name == "shared"]
    assert len(work_pool) == 1


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(mempool.ConfigError, match="no generator"):

        @limit_memory("1MiB")
        def parts() -> Iterator[int]:
            yield 1

    with pytest.raises(mempool.ConfigError, match="a function"):
        limit_memory("1MiB")(5)  # type: ignore[arg-type]
