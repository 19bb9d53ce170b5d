"""The switch, the device's limits, and giving memory back."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass

import torch

from mempool import _torch_cpu
from mempool._device import (
    Device,
    Size,
    allocator,
    cpu,
    cuda,
    cuda_problem,
    install_cuda,
    is_cpu_enabled,
    is_cuda_enabled,
    optional_size,
    parse_device,
    size,
)
from mempool.errors import DeviceError


def enable(device: Device = None, limit: Size | None = None, soft_limit: Size | None = None) -> dict[str, bool | str]:
    """Makes mempool the allocator of every new tensor of a device.

    Live CPU tensors keep their memory and their way of freeing it, so that this can be called for the CPU at any time,
    from any thread, and again. torch cannot change its CUDA allocator once it has used it: for CUDA call this before
    the first CUDA tensor, right after the imports. All of the process's CUDA devices are served.

    Args:
        device: ``"cpu"``, ``"cuda"``, or None for each of the two that can be used.
        limit: most bytes that the device may hold from the system, as for :func:`set_limit`: of each CUDA device if
            CUDA is named, else of the CPU. None changes nothing.
        soft_limit: held bytes above which mempool trims and then calls the pressure callbacks. None changes nothing.

    Returns:
        For ``"cpu"`` and ``"cuda"``, as far as asked for: True, or the reason why it is not enabled.

    Raises:
        ConfigError: unknown device, a size that does not parse, a limit below what is held, a wrong MEMPOOL_CONF.
        DeviceError: the device that was named cannot be used; for CUDA also when torch has initialized it already.
    """
    kinds = ("cpu", "cuda") if device is None else (parse_device(device).type,)
    problem = cuda_problem() if "cuda" in kinds else None
    if problem is not None and device is not None:
        raise DeviceError(f"cuda: {problem}.")
    _warn_of_unused_settings("cuda" in kinds and problem is None)
    result: dict[str, bool | str] = {}
    if "cpu" in kinds:
        _enable_cpu(limit, soft_limit)
        result["cpu"] = True
    if "cuda" in kinds and problem is None:
        try:
            _enable_cuda(limit if device is not None else None, soft_limit if device is not None else None)
        except DeviceError as error:
            if device is not None:
                raise
            problem = str(error).removeprefix("cuda: ").removeprefix("mempool: ")
    if "cuda" in kinds:
        result["cuda"] = True if problem is None else problem
    return result


def _enable_cpu(limit: Size | None, soft_limit: Size | None) -> None:
    # Everything that can fail comes before the switch: a call that raises has enabled nothing.
    limit_bytes = optional_size(limit, "limit")
    soft_bytes = optional_size(soft_limit, "soft_limit")
    handle = cpu()
    if limit_bytes is not None:
        handle.limit = limit_bytes
    if soft_bytes is not None:
        handle.soft_limit = soft_bytes
    _torch_cpu.enable()


def _enable_cuda(limit: Size | None, soft_limit: Size | None) -> None:
    # Devices that exist take a limit now; those that torch makes later take it with their options.
    conf = []
    for key, value in (("limit", limit), ("soft_limit", soft_limit)):
        if value is not None:
            size(value, key)  # refused here if it does not parse
            conf.append(f"{key}:{value}")
    was_enabled = is_cuda_enabled()
    install_cuda(",".join(conf))
    if was_enabled and conf:
        for index in range(torch.cuda.device_count()):
            handle = cuda(index)
            if limit is not None:
                handle.limit = size(limit, "limit", handle)
            if soft_limit is not None:
                handle.soft_limit = size(soft_limit, "soft_limit", handle)


def disable(device: Device = None) -> None:
    """Makes the allocator that was in place before serve new CPU tensors again.

    Live blocks stay valid and return to mempool when they are freed. Has no effect when mempool is not enabled.

    Raises:
        ConfigError: unknown device.
        DeviceError: CUDA is named and enabled: torch cannot change its CUDA allocator any more.
    """
    if device is not None and parse_device(device).type == "cuda":
        if is_cuda_enabled():
            raise DeviceError(
                "cuda: torch cannot change its CUDA allocator once it is installed. Start the process without "
                "mempool.enable('cuda') to use torch's own."
            )
        return
    _torch_cpu.disable()


def is_enabled(device: Device = "cpu") -> bool:
    """Whether new tensors of the device come from mempool; with None, those of any device.

    Raises:
        ConfigError: unknown device.
    """
    if device is None:
        return is_cpu_enabled() or is_cuda_enabled()
    return is_cpu_enabled() if parse_device(device).type == "cpu" else is_cuda_enabled()


def set_limit(limit: Size | None, device: Device = None, *, soft: bool = False) -> None:
    """Bounds the bytes that a device *holds*: live blocks, caches and free memory not yet given back.

    Free memory is given back first where the new limit needs that.

    Args:
        limit: bytes, ``"8GiB"``, a percentage, or None for no limit. On CUDA ``"50%"`` is of the device's memory; on
            the CPU of the smallest of the machine's memory, every enclosing control group's limit and ``ulimit -v``,
            read now.
        device: None means the only enabled one.
        soft: set the soft limit instead: above it mempool trims and calls the pressure callbacks, but refuses nothing.

    Raises:
        ConfigError: the size does not parse, or more is in use than the limit allows; the limit is then unchanged.
    """
    handle = allocator(device)
    bytes_or_none = optional_size(limit, "limit", handle)
    if soft:
        handle.soft_limit = bytes_or_none
    else:
        handle.limit = bytes_or_none


def get_limit(device: Device = None, *, soft: bool = False) -> int | None:
    """The device's limit on held bytes, or with ``soft`` its soft limit; None when there is none."""
    handle = allocator(device)
    return handle.soft_limit if soft else handle.limit


def trim(device: Device = None, target_bytes: Size | int = 0) -> int:
    """Gives free memory back to the system until at most ``target_bytes`` are held.

    Free blocks in thread caches are recalled first. Live blocks stay where they are, and so more may stay held.

    Args:
        device: None means the only enabled one.
        target_bytes: bytes, or a size as text; 0 gives back all that can be.

    Returns:
        The bytes given back.

    Raises:
        ConfigError: unknown device, a size that does not parse.
    """
    is_zero = target_bytes == 0 and not isinstance(target_bytes, bool)
    handle = allocator(device)
    return handle.trim(0 if is_zero else size(target_bytes, "target_bytes", handle))


def empty_cache(device: Device = None) -> None:
    """Gives all free memory back to the system: :func:`trim` under the name that torch.cuda has for it."""
    allocator(device).trim(0)


@dataclass(frozen=True)
class DefragmentReport:
    """What :func:`defragment` did."""

    regained_bytes: int  # growth of the largest free range
    moved_handles: int  # pieces of physical memory that were remapped to another address
    moved_bytes: int
    largest_free_bytes: int  # the largest block that can be allocated now without a call to the system
    seconds: float


def defragment(device: Device = None) -> DefragmentReport:
    """Remaps free memory into one contiguous range, without a copy. Live blocks stay where they are.

    mempool does this by itself when no free range is long enough. Calling it ahead takes the cost out of the next large
    request. Nothing is given back to the system.
    """
    handle = allocator(device)
    start = time.perf_counter()
    regained, moves, moved, largest = handle.defragment()
    return DefragmentReport(regained, moves, moved, largest, time.perf_counter() - start)


def _warn_of_unused_settings(for_cuda: bool) -> None:
    if os.environ.get("PYTORCH_ALLOC_CONF") or (for_cuda and os.environ.get("PYTORCH_CUDA_ALLOC_CONF")):
        warnings.warn(
            "PYTORCH_ALLOC_CONF configures torch's own device allocator; mempool does not read it. "
            "Use MEMPOOL_CONF (`mempool options` lists its keys).",
            stacklevel=3,
        )
