"""The errors that mempool raises. A torch operation that finds no memory raises torch's own OutOfMemoryError."""

from __future__ import annotations

import torch

from mempool._core import ConfigError, PoolAsleepError, PoolClosedError, PoolStateError

__all__ = [
    "ConfigError",
    "DeviceError",
    "NotEnabledError",
    "OutOfMemoryError",
    "PoolAsleepError",
    "PoolClosedError",
    "PoolStateError",
    "SnapshotError",
    "TraceError",
]

OutOfMemoryError = torch.OutOfMemoryError
"""torch's own class. :func:`oom_info` reads the facts from one that mempool raised."""


class DeviceError(RuntimeError):
    """A device that was named cannot be used; the message says why."""


class NotEnabledError(DeviceError):
    """The call needs mempool to serve the device's tensors, and ``enable()`` was not called in this process."""


class TraceError(ValueError):
    """A file is not an allocation trace; the message names the line."""


class SnapshotError(ValueError):
    """A file is not a memory snapshot; the message says what is wrong with it."""
