"""The release of torch that the tests run with, for those that an older one lacks something for."""

from __future__ import annotations

import pytest
import torch

TORCH = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def needs(minor: int, what: str) -> pytest.MarkDecorator:
    """Skips a test where torch is older than 2.`minor`, which brought `what`."""
    return pytest.mark.skipif(TORCH[:2] < (2, minor), reason=f"torch 2.{minor} brought {what}")


COUNTS_PRIVATE_POOLS = needs(13, "reserved_bytes_by_private_pools")
TELLS_POOLS = needs(13, "pool_id in the entries of its history")
PLACES_BLOCKS = needs(13, "allocateWithAddress")
