"""A service: each worker that imports it does the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from work import work

work()


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers nothing: uvicorn runs it without lifespan."""


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("204 No Content", [])
    return []
