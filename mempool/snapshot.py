"""Snapshots in the format of torch.cuda.memory._snapshot, which torch's own viewer and its _memory_viz read."""

from __future__ import annotations

import os
import pickle
from typing import Any, BinaryIO

from mempool import _core
from mempool._device import Device, allocator
from mempool.errors import ConfigError, SnapshotError

# Blocks up to here are torch's "small_pool".
_SMALL_BYTES = 1 << 20


def record_history(enabled: bool = True, device: Device = None, max_events: int | None = None) -> None:
    """Remembers the Python stack of each block made from now on, and the last allocation events.

    Costs several microseconds an allocation while it is on. Switching it on again starts anew, switching it off
    forgets.

    Args:
        max_events: events to keep, the oldest go first; None for the option ``history_events``.
    """
    handle = allocator(device)
    if not enabled:
        handle.history_stop()
        _core.set_stack_capture(False)
        return
    most = handle.history_events if max_events is None else max_events
    if not isinstance(most, int) or isinstance(most, bool) or most < 0:
        raise ConfigError(f"max_events must be a whole number, not {max_events!r}.")
    handle.history_stop()
    _core.set_stack_capture(True)
    handle.history_start(most)


def memory_snapshot(device: Device = None) -> dict[str, Any]:
    """The state of every held byte, in torch's snapshot format.

    Returns:
        ``segments``: one for each contiguous backed range, with ``address``, ``total_size``, ``allocated_size``,
        ``active_size``, ``requested_size`` and ``blocks`` (``address``, ``size``, ``requested_size``, ``state``,
        ``frames``, ``pool``); ``device_traces``: one list of events, oldest first, filled while
        :func:`record_history` is on; ``allocator_settings``. Sizes in bytes, times in microseconds.
    """
    handle = allocator(device)
    live, events, dropped = handle.history_view()
    raw_segments, names = handle.snapshot()
    frames = _Frames()
    index = int(handle.name.partition(":")[2] or 0)
    return {
        "segments": [_segment(raw, live, names, frames, index) for raw in raw_segments],
        "device_traces": [_trace(events, frames)],
        "allocator_settings": {
            "allocator": "mempool",
            "version": _core.version,
            "device": handle.name,
            "limit": handle.limit,
            "events_dropped": dropped,
            "expandable_segments": True,
        },
        "external_annotations": [],
    }


class _Frames:
    """The frames of a stack, read once for all blocks and events that share it."""

    def __init__(self) -> None:
        self._known: dict[int, list[dict[str, object]]] = {}

    def of(self, stack: int) -> list[dict[str, object]]:
        if stack not in self._known:
            self._known[stack] = _core.stack_frames(stack)
        return self._known[stack]


def _segment(
    raw: _core.Segment, live: dict[int, _core.Event], names: dict[int, str], frames: _Frames, device: int
) -> dict[str, Any]:
    address, total, arena, arena_number, stream, raw_blocks = raw
    blocks = []
    for block_address, size, requested, account, is_live, is_waiting in raw_blocks:
        block: dict[str, Any] = {
            "address": block_address,
            "size": size,
            "requested_size": requested,
            "state": "active_allocated" if is_live else "active_pending_free" if is_waiting else "inactive",
            "frames": [],
        }
        if is_live:
            block["pool"] = names.get(account, "default")
            made = live.get(block_address)
            # The history was read a moment before the heap: an address may belong to another block by now.
            if made is not None and made[3] == requested:
                block["frames"] = frames.of(made[4])
        blocks.append(block)
    used = sum(b["size"] for b in blocks if b["state"] == "active_allocated")
    waiting = sum(b["size"] for b in blocks if b["state"] == "active_pending_free")
    return {
        "device": device,
        "address": address,
        "total_size": total,
        "allocated_size": used,
        "active_size": used + waiting,
        "requested_size": sum(b["requested_size"] for b in blocks),
        "stream": stream,
        "segment_type": "small" if all(b["size"] <= _SMALL_BYTES for b in blocks) else "large",
        "segment_pool_id": (0, arena_number),
        "is_expandable": True,
        "frames": [],
        "arena": arena,
        "blocks": blocks,
    }


def _trace(events: list[_core.Event], frames: _Frames) -> list[dict[str, Any]]:
    trace = []
    for is_alloc, address, size, _requested, stack, _account, time_us in events:
        # torch tells apart when a free was asked for and when the streams had caught up; on CPU that is one moment.
        for action in ("alloc",) if is_alloc else ("free_requested", "free_completed"):
            trace.append(
                {
                    "action": action,
                    "addr": address,
                    "size": size,
                    "stream": 0,
                    "time_us": time_us,
                    "frames": frames.of(stack),
                }
            )
    return trace


def dump_snapshot(path: str | os.PathLike[str], device: Device = None) -> None:
    """Writes :func:`memory_snapshot` as a pickle that ``mempool stats`` and torch's viewer open."""
    snapshot = memory_snapshot(device)
    with open(path, "wb") as file:
        pickle.dump(snapshot, file, protocol=4)


class _DataUnpickler(pickle.Unpickler):
    """Plain data only: a snapshot from a stranger must not be able to run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, and a snapshot holds plain data only")


def load_snapshot(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a snapshot that :func:`dump_snapshot` or torch wrote. Runs no code from it.

    Raises:
        OSError: the file cannot be read.
        SnapshotError: it is not a snapshot.
    """
    with open(path, "rb") as file:
        snapshot = _unpickle(file, path)
    problem = _problem_of(snapshot)
    if problem is not None:
        raise SnapshotError(f"{os.fspath(path)} is not a memory snapshot: {problem}.")
    result: dict[str, Any] = snapshot
    return result


def _unpickle(file: BinaryIO, path: str | os.PathLike[str]) -> Any:
    try:
        return _DataUnpickler(file).load()
    except Exception as error:  # a broken pickle raises nearly anything
        reason = str(error) or type(error).__name__
        raise SnapshotError(f"{os.fspath(path)} is not a memory snapshot: {reason}.") from error


def _problem_of(snapshot: Any) -> str | None:
    if not isinstance(snapshot, dict) or not isinstance(snapshot.get("segments"), list):
        return "it has no list of segments"
    for segment in snapshot["segments"]:
        if not isinstance(segment, dict) or not isinstance(segment.get("blocks"), list):
            return "a segment has no list of blocks"
        if not isinstance(segment.get("total_size"), int):
            return "a segment has no total_size"
        for block in segment["blocks"]:
            if not isinstance(block, dict) or not isinstance(block.get("size"), int) or "state" not in block:
                return "a block lacks its size or state"
    return None
