"""Snapshots in the format of torch.cuda.memory._snapshot, which torch's own viewer and its _memory_viz read."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

from mempool import _core
from mempool._device import Device, allocator
from mempool._files import StrPath, atomic_write
from mempool.errors import ConfigError, SnapshotError

_switching = threading.Lock()
_recorded: set[str] = set()  # the devices whose history is on: the stacks of all of them are kept in one place


def record_history(enabled: bool = True, device: Device = None, max_events: int | None = None) -> None:
    """Records the Python stack of each block that is allocated from now on, and the last allocation events.

    Costs several microseconds an allocation while it is on. Switching it on again starts anew, switching it off
    drops what was recorded. Other devices go on as they are.

    Args:
        enabled: False switches it off.
        device: None means the only enabled one.
        max_events: events to keep, the oldest go first; None for the option ``history_events``.
    """
    handle = allocator(device)
    if not enabled:
        with _switching:
            handle.history_stop()
            _recorded.discard(handle.name)
            if not _recorded:
                _core.set_stack_capture(False)
        return
    most = handle.history_events if max_events is None else max_events
    if not isinstance(most, int) or isinstance(most, bool) or not 0 <= most < 1 << 63:
        raise ConfigError(f"max_events must be a whole number of at most 63 bits, not {max_events!r}.")
    with _switching:
        handle.history_stop()
        if _recorded <= {handle.name}:
            _core.set_stack_capture(True)  # what was kept for this device alone goes
        _recorded.add(handle.name)
        handle.history_start(most)


def memory_snapshot(device: Device = None) -> dict[str, Any]:
    """The state of every held byte, in torch's snapshot format.

    Returns:
        ``segments``: one for each contiguous backed range, with ``address``, ``total_size``, ``allocated_size``,
        ``active_size``, ``requested_size`` and ``blocks`` (``address``, ``size``, ``requested_size``, ``state``,
        ``frames``, ``pool``); ``device_traces``: at the device's index its list of events, oldest first, filled while
        :func:`record_history` is on; ``allocator_settings``. Sizes in bytes, times in microseconds.
    """
    handle = allocator(device)
    return read_snapshot(_core.take_snapshot(handle), handle)


def read_snapshot(taken: _core.TakenSnapshot, handle: _core.Device) -> dict[str, Any]:
    """:func:`memory_snapshot` of the moment at which ``taken`` was."""
    live, events, dropped = taken.history()
    raw_segments, names = taken.segments()
    frames = _Frames()
    index = int(handle.name.partition(":")[2] or 0)
    with _collector_paused():
        segments = [_segment(raw, live, names, frames, index) for raw in raw_segments]
        trace = _trace(events, frames)
    return {
        "segments": segments,
        "device_traces": [*([] for _ in range(index)), trace],
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


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Hundreds of thousands of new dictionaries have Python's collector go over all of them again and again, with every
    other thread stopped. There is no cycle among them to find."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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
    address, total, arena, arena_number, stream, (allocated, active, requested_bytes, is_large), raw_blocks = raw
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
    return {
        "device": device,
        "address": address,
        "total_size": total,
        "allocated_size": allocated,
        "active_size": active,
        "requested_size": requested_bytes,
        "stream": stream,
        "segment_type": "large" if is_large else "small",
        "segment_pool_id": (0, arena_number),
        "is_expandable": True,
        "frames": [],
        "arena": arena,
        "blocks": blocks,
    }


def _trace(events: list[_core.Event], frames: _Frames) -> list[dict[str, Any]]:
    trace = []
    for recorded, address, size, _requested, stack, _account, time_us, stream in events:
        # torch tells apart when a free is requested and when other streams that use the block have caught up.
        for action in ("free_requested", "free_completed") if recorded == "free" else (recorded,):
            trace.append(
                {
                    "action": action,
                    "addr": address,
                    "size": size,
                    "stream": stream,
                    "time_us": time_us,
                    "frames": frames.of(stack),
                }
            )
    return trace


def dump_snapshot(path: StrPath, device: Device = None) -> None:
    """Writes :func:`memory_snapshot` as a pickle that ``mempool stats`` and torch's viewer open.

    A file that is there already is replaced once the new one is whole.

    Raises:
        OSError: it cannot be written; what was there is unchanged.
    """
    snapshot = memory_snapshot(device)
    with atomic_write(path) as file:
        pickle.dump(snapshot, file, protocol=4)


class _DataUnpickler(pickle.Unpickler):
    """Plain data only: a snapshot from a stranger must not be able to run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, and a snapshot holds plain data only")


def load_snapshot(path: StrPath) -> dict[str, Any]:
    """Reads a snapshot that :func:`dump_snapshot` or torch wrote. Runs no code from it.

    Raises:
        OSError: the file cannot be read.
        SnapshotError: it is not a snapshot.
    """
    with open(path, "rb") as file:
        snapshot = _unpickle(file, path)
    problem = _problem_of(snapshot)
    if problem is not None:
        raise SnapshotError(f"{os.fsdecode(path)} is not a memory snapshot: {problem}.")
    result: dict[str, Any] = snapshot
    return result


def _unpickle(file: BinaryIO, path: StrPath) -> Any:
    try:
        return _DataUnpickler(file).load()
    except Exception as error:  # a broken pickle raises nearly anything
        reason = str(error) or type(error).__name__
        raise SnapshotError(f"{os.fsdecode(path)} is not a memory snapshot: {reason}.") from error


_MOST_BYTES = 1 << 63
_MOST = 1 << 63  # of other numbers: Python makes no text of very long ones, and C takes none


def _problem_of(snapshot: Any) -> str | None:
    if not isinstance(snapshot, dict) or not isinstance(snapshot.get("segments"), list):
        return "it has no list of segments"
    total = in_blocks = 0
    for segment in snapshot["segments"]:
        if not isinstance(segment, dict) or not isinstance(segment.get("blocks"), list):
            return "a segment has no list of blocks"
        if not _is_size(segment.get("total_size")):
            return f"a segment has no total_size in bytes but {_told(segment.get('total_size'))}"
        if not _is_size(segment.get("address", 0)):
            return f"a segment has no address but {_told(segment['address'])}"
        total += segment["total_size"]
        for block in segment["blocks"]:
            problem = _problem_of_block(block)
            if problem is not None:
                return problem
        in_blocks += sum(block["size"] for block in segment["blocks"])
    if in_blocks >= _MOST_BYTES:
        return "its blocks have more bytes than there are addresses"
    if total >= _MOST_BYTES:
        return "its segments have more bytes than there are addresses"
    settings = snapshot.get("allocator_settings")
    if isinstance(settings, dict) and not _is_size(settings.get("events_dropped", 0)):
        return f"its events_dropped are no number of events but {_told(settings['events_dropped'])}"
    return _problem_of_events(snapshot.get("device_traces"))


def _told(value: Any) -> str:
    """A wrong value, for a message: the text of anything else may be as long as the file, or cannot be made."""
    if value is None or _is_number(value) or (isinstance(value, str) and len(value) < 40):
        return repr(value)
    return f"a {type(value).__name__}" if not isinstance(value, int) else "a number that is too large"


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and -_MOST < value < _MOST


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_BYTES


def _problem_of_block(block: Any) -> str | None:
    if not isinstance(block, dict) or "size" not in block or "state" not in block:
        return "a block lacks its size or state"
    if not _is_size(block["size"]):
        return f"a block has no size in bytes but {_told(block['size'])}"
    if not isinstance(block["state"], str):
        return f"a block has no state but {_told(block['state'])}"
    if not _is_size(block.get("address", 0)):
        return f"a block has no address but {_told(block['address'])}"
    if not isinstance(block.get("pool", ""), str) and not _is_number(block["pool"]):
        return f"a block has no pool but {_told(block['pool'])}"
    return _problem_of_frames(block.get("frames"))


def _problem_of_frames(frames: Any) -> str | None:
    """None stands for no frames, as an empty list does."""
    if not isinstance(frames, (list, type(None))):
        return f"the frames of a block are no list but {type(frames).__name__}"
    for frame in frames or []:
        if not isinstance(frame, dict):
            return f"a frame is no dictionary but {type(frame).__name__}"
        if not isinstance(frame.get("filename"), str) or not isinstance(frame.get("name"), str):
            return "a frame lacks its filename or name"
        if not _is_number(frame.get("line")):
            return "a frame lacks its line"
    return None


def _problem_of_events(traces: Any) -> str | None:
    if traces is None:
        return None
    if not isinstance(traces, (list, tuple)) or not all(isinstance(events, (list, tuple)) for events in traces):
        return "its device_traces are no lists of events"
    freed = 0
    for event in (event for events in traces for event in events):
        if not isinstance(event, dict) or not isinstance(event.get("action"), str):
            return "an event lacks its action"
        if event["action"] not in ("alloc", "free_requested", "free_completed"):
            continue
        if not _is_size(event.get("addr")) or not _is_size(event.get("size")):
            return f"an event ({event['action']}) lacks its address or size"
        freed += event["size"] if event["action"] == "free_completed" else 0
        if freed >= _MOST_BYTES:  # all of it may have been there at once
            return "its events free more bytes than there are addresses"
        problem = _problem_of_frames(event.get("frames"))
        if problem is not None:
            return problem
    return None
