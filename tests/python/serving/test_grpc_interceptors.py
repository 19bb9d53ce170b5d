"""Calls of gRPC's servers, each in a pool of its own."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import mempool
from mempool.serving import AioPoolInterceptor, PoolInterceptor

grpc = pytest.importorskip("grpc")
MIB = 1 << 20


@pytest.fixture(autouse=True)
def enabled() -> None:
    mempool.enable("cpu")


def block(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8)


def once(request: bytes, context: Any) -> bytes:
    return str(block(int(request)).numel()).encode()


def stream(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    for request in requests:
        held = block(int(request))
        yield str(held.numel()).encode()


def fault(request: bytes, context: Any) -> bytes:
    raise ValueError("a fault of the app")


async def once_async(request: bytes, context: Any) -> bytes:
    await asyncio.sleep(0)
    return once(request, context)


async def stream_async(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        held = block(int(request))
        await asyncio.sleep(0)
        yield str(held.numel()).encode()


async def fault_async(request: bytes, context: Any) -> bytes:
    raise ValueError("a fault of the app")


def handler(once: Any, stream: Any, fault: Any) -> Any:
    methods = {
        "once": grpc.unary_unary_rpc_method_handler(once),
        "stream": grpc.stream_stream_rpc_method_handler(stream),
        "fault": grpc.unary_unary_rpc_method_handler(fault),
    }
    return grpc.method_handlers_generic_handler("shop", methods)


def check(port: int, pool: mempool.MemoryPool) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        unary, fault = channel.unary_unary("/shop/once"), channel.unary_unary("/shop/fault")
        both = channel.stream_stream("/shop/stream")
        assert unary(b"10", timeout=30) == str(10 * MIB).encode()
        assert list(both(iter([b"10", b"4"]), timeout=30)) == [str(10 * MIB).encode(), str(4 * MIB).encode()]
        with pytest.raises(grpc.RpcError) as refused:
            unary(b"20", timeout=30)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        told = json.loads(refused.value.details())
        assert (told["error"], told["reason"], told["pool"]) == ("out_of_memory", "pool_limit", "shop request")
        assert (told["requested"], told["limit"], told["may_pass_later"]) == (20 * MIB, 16 * MIB, False)
        answers = both(iter([b"1", b"20"]), timeout=30)
        assert next(answers) == str(MIB).encode()
        with pytest.raises(grpc.RpcError) as refused:
            next(answers)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as failed:
            fault(b"1", timeout=30)
        assert failed.value.code() is grpc.StatusCode.UNKNOWN
        with pytest.raises(grpc.RpcError) as missing:
            channel.unary_unary("/shop/nothing")(b"1", timeout=30)
        assert missing.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert pool.stats()["num_ooms"] == 0  # the calls' own limits refused
    assert pool.stats()["allocated_bytes.allocated"] == (10 + 10 + 4 + 1) * MIB


def test_calls_of_a_server_with_threads() -> None:
    interceptor = PoolInterceptor("16MiB", name="shop")
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handler(once, stream, fault)], interceptors=[interceptor])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        check(port, interceptor.pool)
    finally:
        server.stop(None).wait(30)
    assert interceptor.pool.used_bytes() == 0


def test_calls_of_an_asynchronous_server() -> None:
    interceptor = AioPoolInterceptor("16MiB", name="shop")

    async def main(use: Callable[[int, mempool.MemoryPool], None]) -> None:
        handlers = [handler(once_async, stream_async, fault_async)]
        server = grpc.aio.server(handlers=handlers, interceptors=[interceptor])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            await asyncio.to_thread(use, port, interceptor.pool)
        finally:
            await server.stop(None)

    asyncio.run(main(check))
    gc.collect()  # what the failed stream held is in a cycle of its traceback
    assert interceptor.pool.used_bytes() == 0
