"""Statistics under the names and keys of torch.cuda.memory, for the devices that mempool serves."""

from __future__ import annotations

from collections import OrderedDict

from mempool import _core
from mempool._device import Device, allocator
from mempool._text import render

_METRICS = ("current", "peak", "allocated", "freed")
_ROWS = (
    ("Allocated memory", "allocated_bytes", True),
    ("Requested memory", "requested_bytes", True),
    ("Reserved memory", "reserved_bytes", True),
    ("Free range memory", "inactive_split_bytes", True),
    ("Allocations", "allocation", False),
    ("Backed ranges", "segment", False),
    ("Free ranges", "inactive_split", False),
)


def memory_stats(device: Device = None) -> OrderedDict[str, int]:
    """All counters, with the keys of ``torch.cuda.memory_stats``.

    A key is ``{figure}.{pool}.{metric}``: ``allocated_bytes.all.current``. ``small_pool`` counts blocks of at most
    1 MiB, ``large_pool`` the others. ``allocated`` and ``freed`` are sums since the start or the last reset.
    ``segment`` counts contiguous backed ranges, ``inactive_split`` free ranges of the arenas (free blocks in thread
    caches and slabs are not in it). On the CPU a block is active exactly while it is allocated. ``num_moves`` and
    ``moved_bytes`` count free memory that was remapped. ``num_arena_locks`` counts how often a thread has gone
    beyond its own cache, to what all threads share, and ``num_arena_lock_waits`` how often it waited for another there;
    whatever takes blocks back counts, too.

    Current values are exact, and so are a pool's peaks. A device's peak is never too low. It can be too high by at most
    256 KiB in each of the two pools for each thread that has freed blocks.
    """
    return OrderedDict(sorted(allocator(device).stats().items()))


def memory_allocated(device: Device = None) -> int:
    """Bytes of live blocks.

    Each is rounded up: to a multiple of 64 bytes up to 1 KiB, up to 32 KiB to an eighth of the power of two below it,
    above that to 4 KiB.
    """
    return allocator(device).stats()["allocated_bytes.all.current"]


def max_memory_allocated(device: Device = None) -> int:
    """The peak of :func:`memory_allocated` since the start or :func:`reset_peak_memory_stats`."""
    return allocator(device).stats()["allocated_bytes.all.peak"]


def memory_reserved(device: Device = None) -> int:
    """Bytes held from the system: live blocks, caches and free memory not yet given back."""
    return allocator(device).stats()["reserved_bytes.all.current"]


def max_memory_reserved(device: Device = None) -> int:
    """The peak of :func:`memory_reserved` since the start or :func:`reset_peak_memory_stats`."""
    return allocator(device).stats()["reserved_bytes.all.peak"]


def reset_peak_memory_stats(device: Device = None) -> None:
    """Sets every peak to its current value."""
    allocator(device).reset_peaks()


def reset_accumulated_memory_stats(device: Device = None) -> None:
    """Sets the sums (``allocated``, ``freed``) to zero. Counts of out-of-memory errors, retries and map calls go on."""
    allocator(device).reset_sums()


def memory_summary(device: Device = None, abbreviated: bool = False) -> str:
    """A table of the statistics for people. ``abbreviated`` leaves out the small and large pools."""
    from rich.table import Table  # only here: importing mempool stays light

    handle = allocator(device)
    stats = handle.stats()
    table = Table(title=f"mempool memory of {handle.name}", title_justify="left")
    table.add_column("")
    for metric in ("current", "peak", "total allocated", "total freed"):
        table.add_column(metric, justify="right")
    for title, key, is_bytes in _ROWS:
        for pool in ("all",) if abbreviated else ("all", "small_pool", "large_pool"):
            values = [stats[f"{key}.{pool}.{metric}"] for metric in _METRICS]
            shown = [_core.format_bytes(v) if is_bytes else str(v) for v in values]
            table.add_row(title if pool == "all" else f"  {pool}", *shown)
    limit = handle.limit
    line = (
        f"limit {'none' if limit is None else _core.format_bytes(limit)}, "
        f"out-of-memory errors {stats['num_ooms']}, retries {stats['num_alloc_retries']}, "
        f"pressure calls {stats['num_pressure_calls']}, "
        f"commits {stats['num_device_alloc']}, decommits {stats['num_device_free']}"
    )
    return render(table, line, width=100)
