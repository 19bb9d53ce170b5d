"""From what users write for a device or a size to what the compiled part takes."""

from __future__ import annotations

import operator
import os
from typing import TypeAlias

import torch

from mempool import _core, _torch_cpu
from mempool.errors import ConfigError, DeviceError

Device: TypeAlias = str | torch.device | None
Size: TypeAlias = int | str

CUDA_MISSING = "this build of mempool has no CUDA allocator"


def device_type(device: str | torch.device) -> str:
    """``"cpu"`` or ``"cuda"``. Raises ConfigError for anything else."""
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"unknown device {device!r}: mempool knows 'cpu' and 'cuda'.") from error
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"mempool has no allocator for device {device!r}: it knows 'cpu' and 'cuda'.")
    return kind


def allocator(device: Device = None) -> _core.Device:
    """The allocator of a device; None means the only one that is enabled."""
    if device is None:
        if not _torch_cpu.is_enabled():
            raise DeviceError("no device is enabled: call mempool.enable() first, or name the device.")
        return cpu()
    if device_type(device) == "cuda":
        raise DeviceError(f"cuda: {CUDA_MISSING}.")
    return cpu()


_cpu: _core.Device | None = None


def cpu() -> _core.Device:
    """The CPU allocator, made at the first call from ``MEMPOOL_CONF``. It serves torch only after ``enable()``."""
    global _cpu
    if _cpu is None:
        _cpu = _core.cpu_device(_configuration())
    return _cpu


def _configuration() -> str:
    conf = os.environ.get("MEMPOOL_CONF", "")
    # torch's own switch for huge pages under CPU tensors. What MEMPOOL_CONF says comes later and wins.
    if os.environ.get("THP_MEM_ALLOC_ENABLE") == "0":
        conf = "huge_pages:false," + conf
    return conf


def size(value: Size, what: str) -> int:
    """Bytes of ``4096``, ``"1.5GiB"`` or ``"50%"`` (of the memory usable now). Raises ConfigError."""
    if isinstance(value, str):
        return _core.parse_bytes(value, _core.usable_memory_bytes())
    if isinstance(value, bool):
        raise ConfigError(f"{what} must be bytes or text such as '512MiB', not {value!r}.")
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{what} must be whole bytes or text such as '512MiB', not {value!r}.") from None
    if not 0 < number < 2**63:
        raise ConfigError(f"{what} must be at least one byte and fit 63 bits, not {number}. Use None for no limit.")
    return number


def optional_size(value: Size | None, what: str) -> int | None:
    return None if value is None else size(value, what)
