"""What a request that was refused memory is told: the facts of the out-of-memory error, as JSON for HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mempool.errors import OutOfMemoryError
from mempool.pools import MemoryPool
from mempool.pressure import oom_info

_RETRY_AFTER_S = 1  # what other requests hold comes back within their own time, which nobody here knows
_IN_USE = {"device_limit": "held", "shared_limit": "held_by_all"}  # what each limit bounds; others: a pool's bytes
# Reasons that pass when others give memory back.
_OF_OTHERS = ("device_limit", "shared_limit", "backend_refused")


@dataclass(frozen=True)
class Refusal:
    """One refused allocation of a request, in bytes; a figure that is not known is None."""

    reason: str | None
    pool: str | None  # whose limit refused, else the one that asked
    requested: int | None
    limit: int | None
    in_use: int | None
    may_pass_later: bool  # the request's own limit would refuse it again

    def facts(self) -> dict[str, str | int | None]:
        """What the client is told."""
        told = ("reason", "pool", "requested", "limit", "in_use")
        return {"error": "out_of_memory", **{name: getattr(self, name) for name in told}}

    def body(self) -> bytes:
        """The JSON body of the answer."""
        return json.dumps(self.facts()).encode()

    def retry_after(self) -> dict[str, str]:
        """The header that says when to try again, where that may help."""
        return {"retry-after": str(_RETRY_AFTER_S)} if self.may_pass_later else {}

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Those of the answer with that body."""
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(self.body())).encode())]
        return headers + [(name.encode(), value.encode()) for name, value in self.retry_after().items()]


def _errors_in(error: BaseException) -> Iterator[BaseException]:
    """The error, those of its group and their causes, each once."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += getattr(each, "exceptions", ())
        if each.__cause__ is not None:
            waiting.append(each.__cause__)


def refusal_in(error: BaseException, own: MemoryPool) -> Refusal | None:
    """The refusal that an error of a request tells of, itself or in a group; None for any other error.

    `own`: the pool of the request, whose limit alone would refuse again.
    """
    for each in _errors_in(error):
        info: dict[str, Any] | None = oom_info(each) if isinstance(each, OutOfMemoryError) else None
        if info is None:
            continue
        is_too_large = info["limit"] is not None and info["requested"] > info["limit"]
        is_of_app = info["reason"] == "pool_limit" and info["pool"] != own.name
        return Refusal(
            reason=info["reason"],
            pool=info["pool"],
            requested=info["requested"],
            limit=info["limit"],
            in_use=info[_IN_USE.get(info["reason"], "allocated")],
            may_pass_later=(is_of_app or info["reason"] in _OF_OTHERS) and not is_too_large,
        )
    return None


def untold_refusal(own: MemoryPool) -> Refusal:
    """For an app that has caught the error and answered with a failure: that there was one is all that is known."""
    return Refusal(None, own.name, None, own.limit, own.used_bytes(), may_pass_later=False)


def was_refused(own: MemoryPool) -> bool:
    """Whether any allocation of the request was refused so far, by whichever limit."""
    return own.stats()["num_ooms"] > 0
