"""The pools of a service: one for the app, and in it one for each request."""

from __future__ import annotations

import warnings

from mempool._device import Device, Size, allocator, optional_size
from mempool.control import enable, is_enabled
from mempool.errors import ConfigError
from mempool.pools import MemoryPool


class RequestPools:
    """Makes the pool of each request. Enables mempool where it is not, and warns where that is switched off.

    Raises ConfigError and DeviceError, as ``enable`` and ``MemoryPool`` do.
    """

    def __init__(self, limit: Size | None, app_limit: Size | None, device: Device, name: str) -> None:
        reasons = [] if is_enabled(device) else [each for each in enable(device).values() if isinstance(each, str)]
        self.is_active = not reasons
        if reasons:
            warnings.warn(f"requests of {name!r} have no memory limits: {reasons[0]}.", stacklevel=4)
        self._limit = optional_size(limit, "limit", allocator(device))
        self._request_name = f"{name} request"
        self.app = _labelled(name, device, app_limit)

    def open(self) -> MemoryPool:
        """A request's pool. It closes when nothing refers to it any more; what is alive then is still the app's."""
        return self.app._open_child(self._request_name, self._limit)


def _labelled(name: str, device: Device, limit: Size | None) -> MemoryPool:
    """A pool whose label is its name, where that can be one: a process has 64 labels."""
    try:
        return MemoryPool(name, device, limit, metrics_label=name)
    except ConfigError:
        return MemoryPool(name, device, limit)
