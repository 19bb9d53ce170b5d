"""Memory limits for services: each request in a pool of its own, and a refusal as an answer that a client can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mempool import _lazy

if TYPE_CHECKING:
    from mempool.serving.asgi import PoolMiddleware
    from mempool.serving.fastapi_dependency import PoolDependency
    from mempool.serving.grpc_interceptors import AioPoolInterceptor, PoolInterceptor
    from mempool.serving.tasks import limit_memory
    from mempool.serving.wsgi import WsgiPoolMiddleware

__all__ = [
    "AioPoolInterceptor",
    "PoolDependency",
    "PoolInterceptor",
    "PoolMiddleware",
    "WsgiPoolMiddleware",
    "limit_memory",
]

__getattr__, __dir__ = _lazy.exports(
    __name__,
    {
        "AioPoolInterceptor": "mempool.serving.grpc_interceptors",
        "PoolDependency": "mempool.serving.fastapi_dependency",
        "PoolInterceptor": "mempool.serving.grpc_interceptors",
        "PoolMiddleware": "mempool.serving.asgi",
        "WsgiPoolMiddleware": "mempool.serving.wsgi",
        "limit_memory": "mempool.serving.tasks",
    },
)
