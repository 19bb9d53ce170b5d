"""Enabling by the environment: ``MEMPOOL_ENABLE=cpu=75%,cuda=8GiB`` in every process that imports torch.

``_mempool_autoload`` calls this at the end of ``import torch``.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

from mempool._device import KINDS
from mempool._device_kind import check_limit
from mempool.errors import ConfigError
from mempool.ledger import LEDGER_VARIABLE, join, tell_children


@dataclass(frozen=True)
class Request:
    """What is asked for one kind of device."""

    device: str
    limit: str | None


def parse(text: str) -> list[Request]:
    """``"cpu=75%,cuda"`` -> a request for each; a limit is optional. Raises ConfigError."""
    out: dict[str, Request] = {}
    for part in text.split(","):
        device, equals, limit = (word.strip() for word in part.partition("="))
        if device not in KINDS or device in out or (equals and not limit):
            raise ConfigError(
                f"{part.strip()!r} is not understood: name devices ({', '.join(KINDS)}), each once, with or without "
                "a limit on held bytes, such as 'cpu=75%,cuda=8GiB'."
            )
        if limit:
            check_limit(limit, device)
        out[device] = Request(device, limit or None)
    return list(out.values())


def enable_as_asked(text: str) -> None:
    """Enables each device of ``text``.

    Raises:
        ImportError: one of them was given a limit, and cannot be enabled with it: a process that asked for a limit
            never runs without. Where none was given, one warning says why mempool is not enabled.
    """
    try:
        requests = parse(text)
    except ConfigError as error:
        if "=" in text:
            raise ImportError(f"MEMPOOL_ENABLE={text}: {error}") from error
        warnings.warn(f"MEMPOOL_ENABLE={text}: {error}", stacklevel=2)
        return
    reasons = []
    for request in requests:
        try:
            is_shared = bool(os.environ.get(LEDGER_VARIABLE))
            if is_shared:
                join()
            KINDS[request.device].enable_early(request.limit, is_shared)
            if is_shared:
                tell_children(request.device, None)  # that ENABLE_VARIABLE names already: the ledger's path is new
        except Exception as error:
            if request.limit is not None:
                raise ImportError(f"MEMPOOL_ENABLE={text}: {error}") from error
            reasons.append(str(error))
    if reasons:
        warnings.warn(f"MEMPOOL_ENABLE={text}: {' '.join(reasons)}", stacklevel=2)
