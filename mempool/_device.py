"""Devices and sizes: what users write for them becomes what the compiled part takes; and the list of kinds of devices.

A new kind of device is a file beside ``_device_cpu.py`` and an entry in ``KINDS``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch

from mempool import _core
from mempool._device_cpu import CPU
from mempool._device_cuda import CUDA
from mempool._device_kind import DeviceKind, Size, bytes_of
from mempool._device_pinned import PINNED
from mempool.errors import ConfigError, DeviceError, NotEnabledError

__all__ = [
    "KINDS",
    "Device",
    "Place",
    "Size",
    "allocator",
    "kind_of",
    "optional_size",
    "parse_device",
    "require_enabled",
    "size",
    "whole_bytes",
]

Device: TypeAlias = str | int | torch.device | None

KINDS: dict[str, DeviceKind] = {kind.name: kind for kind in (CPU, CUDA, PINNED)}  # by what users call it
_NUMBERED = CUDA  # the kind that a number alone means, as in torch.cuda


@dataclass(frozen=True)
class Place:
    """A device of a kind that mempool knows; torch's types of devices are not all of them."""

    type: str
    index: int | None = None

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


def parse_device(device: str | int | torch.device | Place) -> Place:
    """A device of a kind that mempool knows; a number is a CUDA device. Raises ConfigError for anything else."""
    if isinstance(device, Place):
        return device
    if isinstance(device, str) and device in KINDS:
        return Place(device)
    try:
        found = torch.device(_NUMBERED.name, device) if isinstance(device, int) else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"unknown device {device!r}: mempool knows {_known()}.") from error
    if found.type not in KINDS:
        raise ConfigError(f"mempool has no allocator for device {device!r}: it knows {_known()}.")
    return Place(found.type, found.index)


def _known() -> str:
    *others, last = map(repr, KINDS)
    return f"{', '.join(others)} and {last}"


def kind_of(device: str | int | torch.device | Place) -> DeviceKind:
    """Raises what ``parse_device`` does."""
    return KINDS[parse_device(device).type]


def allocator(device: Device | Place = None) -> _core.Device:
    """The allocator of a device; None means the only one that is enabled."""
    if device is not None:
        found = parse_device(device)
        return KINDS[found.type].allocator(found.index)
    enabled = [kind for kind in KINDS.values() if kind.is_enabled()]
    if len(enabled) > 1:
        names = " and ".join(f"for {kind.name}" for kind in enabled)
        raise DeviceError(f"mempool is enabled {names}: name the device.")
    if not enabled:
        raise DeviceError("no device is enabled: call mempool.enable() first, or name the device.")
    return enabled[0].allocator(None)


def require_enabled(device: str, what: str) -> None:
    """Raises NotEnabledError where new tensors of the device do not come from mempool; `what` begins its message."""
    kind = device.partition(":")[0]
    if KINDS[kind].is_enabled():
        return
    raise NotEnabledError(
        f"{what}: mempool is not enabled for {kind} in this process, so no block would be charged and no limit kept. "
        f'Call mempool.enable("{kind}") first, in each process that is spawned too, or run the script by `mempool run`.'
    )


def size(value: Size, what: str, of: _core.Device | None = None) -> int:
    """Bytes of ``4096``, ``"1.5GiB"`` or ``"50%"`` (of what the device has, else of usable memory).

    Raises ConfigError.
    """
    return bytes_of(value, what) if of is None else bytes_of(value, what, lambda: whole_bytes(of))


def whole_bytes(handle: _core.Device) -> int:
    """What a percentage is of."""
    kind, _, index = handle.name.partition(":")
    return KINDS[kind].whole_bytes(int(index or 0))


def optional_size(value: Size | None, what: str, of: _core.Device | None = None) -> int | None:
    return None if value is None else size(value, what, of)
