"""The switch, the device's limits, and giving memory back."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass

from mempool import _core, ledger
from mempool._device import KINDS, Device, Size, allocator, kind_of, optional_size, size, whole_bytes
from mempool._device_kind import DeviceKind, reserve_of, set_device_limit, take_reserve
from mempool.errors import ConfigError, DeviceError, PoolStateError


def enable(
    device: Device = None,
    limit: Size | None = None,
    soft_limit: Size | None = None,
    *,
    shared: bool = False,
    reserve: Size | None = None,
) -> dict[str, bool | str]:
    """Makes mempool the allocator of every new tensor of a device.

    Live tensors keep their memory and their way of freeing it, so that this can be called at any time, from any thread,
    and again; for CUDA at any time but while a graph is being captured. All of the process's CUDA devices are served.
    What torch's own CUDA allocator holds then, and keeps for live tensors, graphs and pools, counts in mempool's limit
    of the device: ``outside_bytes`` of :func:`memory_stats`.

    Args:
        device: ``"cpu"``, ``"cuda"``, or None for each of the two that can be used; or ``"pinned"``, torch's pinned
            host memory for CUDA, which only its name enables.
        limit: most bytes that the device may hold from the system, as for :func:`set_limit`: of each CUDA device if
            CUDA is named, of pinned memory if that is, else of the CPU, which may have ``"auto"``. None changes
            nothing.
        soft_limit: held bytes above which mempool trims and then calls the pressure callbacks. None changes nothing.
        shared: the limit is one for all processes that are in the same ledger, which ``MEMPOOL_LEDGER`` in the
            environment names. Where it names none, a new one is made for this process and its children, and both
            variables are set in ``os.environ``, so that children enable mempool, too. The first process that sets a
            limit turns a percentage into bytes, once for all. :func:`shared_report` has the figures.
        reserve: bytes that the device holds from now on, as for :func:`reserve`: of the devices that ``limit`` is
            for. None changes nothing.

    ``MEMPOOL_ENABLE=cpu=75%,cuda`` in the environment does this at the end of ``import torch``, in children, too;
    with ``MEMPOOL_DISABLE=1`` neither it nor this function does anything.

    Returns:
        For each device that was asked for, ``"cpu"`` and ``"cuda"`` or the one named: True, or the reason why it is not
        enabled.

    Raises:
        ConfigError: unknown device, a size that does not parse, a limit below what is held, a wrong MEMPOOL_CONF; with
            ``shared`` also: other processes have set another limit, or the ledger cannot be joined.
        OutOfMemoryError: the memory to reserve cannot be had; CUDA devices that torch makes later raise it then.
        DeviceError: the device that was named cannot be used.
        PoolStateError: CUDA is named while a graph is being captured, in ``torch.cuda.use_mem_pool`` of a pool that
            torch's own allocator has made, or where another allocator has taken mempool's place; pinned memory for the
            first time while a graph is being captured.
    """
    kinds = [each for each in KINDS.values() if not each.by_name_only] if device is None else [kind_of(device)]
    if os.environ.get("MEMPOOL_DISABLE") == "1":
        return dict.fromkeys((kind.name for kind in kinds), "MEMPOOL_DISABLE=1 is set")
    result = {kind.name: kind.problem() or True for kind in kinds}
    usable = [kind for kind in kinds if result[kind.name] is True]
    if device is not None and not usable:
        raise DeviceError(f"{kinds[0].name}: {result[kinds[0].name]}.")
    _warn_of_unused_settings(usable)
    if shared:
        ledger.join()
    for kind in usable:
        # Where no device is named, limits are those of the first kind, and another one that cannot be is no error.
        is_meant = device is not None or kind is kinds[0]
        try:
            own_limit = limit if is_meant else None
            kind.enable(own_limit, soft_limit if is_meant else None, shared, reserve if is_meant else None)
            if shared:
                ledger.tell_children(kind.name, own_limit)
        except (DeviceError, PoolStateError) as error:
            if is_meant:
                raise
            result[kind.name] = str(error).removeprefix(f"{kind.name}: ").removeprefix("mempool: ")
    return result


def disable(device: Device = None) -> None:
    """Makes the allocator that was in place before serve new tensors again: of one device, or with None of all.

    Live blocks stay valid and return to mempool when they are freed; what mempool keeps of CUDA memory beside them goes
    back to the device. Has no effect when mempool is not enabled.

    Raises:
        ConfigError: unknown device.
        PoolStateError: a CUDA graph is being captured; CUDA is then enabled still.
    """
    for kind in KINDS.values() if device is None else [kind_of(device)]:
        kind.disable()


def is_enabled(device: Device = "cpu") -> bool:
    """Whether new tensors of the device come from mempool; with None, those of any device.

    Raises:
        ConfigError: unknown device.
    """
    return any(kind.is_enabled() for kind in (KINDS.values() if device is None else [kind_of(device)]))


def set_limit(limit: Size | None, device: Device = None, *, soft: bool = False, shared: bool = False) -> None:
    """Bounds the bytes that a device *holds*: live blocks, caches and free memory not yet given back.

    Free memory is given back first where the new limit needs that.

    Args:
        limit: bytes, ``"8GiB"``, a percentage, ``"auto"``, or None for no limit. ``"auto"`` is for the CPU: all that
            the process may use less a margin, and what others use counts in it (docs/limits.md). On CUDA ``"50%"`` is
            of the device's memory; on the CPU and for pinned memory of the smallest of the machine's memory, every
            enclosing control group's limit and ``ulimit -v``, read now.
        device: None means the only enabled one.
        soft: set the soft limit instead: above it mempool trims and calls the pressure callbacks, but refuses nothing.
        shared: set the limit of all processes of the ledger that :func:`enable` has joined.

    Raises:
        ConfigError: the size does not parse, or more is in use than the limit allows; the limit is then unchanged. With
            ``shared`` also: the device is in no ledger, or ``soft`` is asked for as well.
    """
    if soft and shared:
        raise ConfigError("a soft limit is each process's own: set one without shared=True.")
    handle = allocator(device)
    if not soft and not shared:
        set_device_limit(handle, limit, lambda: whole_bytes(handle))
        return
    bytes_or_none = optional_size(limit, "limit", handle)
    if shared:
        _core.set_shared_limit(handle, bytes_or_none)
    else:
        handle.soft_limit = bytes_or_none


def get_limit(device: Device = None, *, soft: bool = False, shared: bool = False) -> int | None:
    """The device's limit on held bytes, with ``soft`` its soft limit, with ``shared`` that of all processes of its
    ledger; None when there is none.

    Raises:
        ConfigError: unknown device; with ``shared`` also: the device is in no ledger, or ``soft`` is asked for as well.
    """
    if soft and shared:
        raise ConfigError("a soft limit is each process's own.")
    handle = allocator(device)
    if shared:
        return _core.shared_limit(handle)
    return handle.soft_limit if soft else handle.limit


def reserve(reserve: Size, device: Device = None) -> None:
    """Holds at least so many bytes of memory for the device from now on: what is missing is taken at once.

    Requests are then served without a call to the system. What is reserved does not decay, :func:`trim` leaves it, and
    isolated pools cannot take it: they reserve their own, :meth:`MemoryPool.reserve`. On the CPU the system backs what
    is taken (Linux 5.14 and later), so that no first touch faults.

    Args:
        reserve: bytes, ``"8GiB"``, or a percentage, as for :func:`set_limit`. 0 ends the reservation: the memory is
            then free like any other.
        device: None means the only enabled one.

    Raises:
        ConfigError: unknown device, a size that does not parse.
        OutOfMemoryError: a limit or the system refuses it; nothing is changed.
    """
    handle = allocator(device)
    take_reserve(handle, reserve_of(reserve, lambda: whole_bytes(handle)))


def trim(device: Device = None, target_bytes: Size | int = 0) -> int:
    """Gives free memory back to the system until at most ``target_bytes`` are held.

    Free blocks in thread caches are recalled first. Live blocks stay where they are, and so does what is reserved: more
    may stay held.

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


def _warn_of_unused_settings(kinds: list[DeviceKind]) -> None:
    """In one warning, for kinds that are not enabled yet. Where a kind reads torch's settings, it alone knows what of
    them does not hold."""
    asked = [kind for kind in kinds if kind.reads_settings] or kinds
    new = [kind for kind in asked if not kind.is_enabled()]
    notes = dict.fromkeys(note for kind in new if (note := kind.note_on_settings()) is not None)
    if notes:
        warnings.warn(" ".join(notes), stacklevel=3)
