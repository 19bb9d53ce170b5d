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


class DeviceError(RuntimeError):
    """A device that was named cannot be used; the message says why."""


class NotEnabledError(DeviceError):
    """What was asked needs mempool under the device's tensors, and ``enable()`` was not called in this process."""


class TraceError(ValueError):
    """A file is not a trace of allocations; the message has the line."""


class SnapshotError(ValueError):
    """A file is not a memory snapshot."""
