"""What the events of a snapshot tell: what was live at their peak, and which code made a block."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

_TORCH = ("site-packages/torch/", "dist-packages/torch/")
_NATIVE = (".c", ".cc", ".cpp", ".cxx", ".cu", ".cuh", ".h", ".hpp", ".inl", ".so", ".S", ".rs")


@dataclass(frozen=True)
class Peak:
    """What was live at the peak of a device's recorded events."""

    device: int
    nbytes: int
    blocks: list[dict[str, Any]]  # each with size and frames; no frames where the allocation itself was not recorded
    dropped: int  # earlier events that were not kept: the peak may lie among them


def find_peaks(snapshot: dict[str, Any]) -> list[Peak]:
    """For each device with events, exactly what was live when most was, of all moments that the events cover.

    Goes back from what is live at the end, an event at a time, so it needs no event before the first that was kept.
    """
    peaks = []
    for device, events in enumerate(snapshot.get("device_traces") or []):
        if events:
            peaks.append(_peak(snapshot, device, events))
    return peaks


def _peak(snapshot: dict[str, Any], device: int, events: list[dict[str, Any]]) -> Peak:
    segments = [s for s in snapshot["segments"] if s.get("device", 0) == device]
    ends = _blocks(segments)
    live = {address: block["size"] for address, block in ends.items()}
    total = most = sum(live.values())
    moment = len(events)  # the events before it have happened
    for index in range(len(events) - 1, -1, -1):
        event = events[index]
        if event["action"] == "free_completed" and event["addr"] not in live:
            live[event["addr"]] = event["size"]
            total += event["size"]
        elif event["action"] == "alloc" and event["addr"] in live:
            total -= live.pop(event["addr"])
        if total > most:
            most, moment = total, index
    return Peak(device, most, _live_at(ends, events, moment), _dropped(snapshot))


def _live_at(ends: dict[int, dict[str, Any]], events: list[dict[str, Any]], moment: int) -> list[dict[str, Any]]:
    live = dict(ends)
    for event in reversed(events[moment:]):
        if event["action"] == "free_completed":
            live.setdefault(event["addr"], {"size": event["size"], "frames": []})
        elif event["action"] == "alloc":
            live.pop(event["addr"], None)
    # The event of a free has the stack that freed: the one that made the block is in an earlier event, or nowhere.
    for event in events[:moment]:
        if event["action"] == "alloc" and event["addr"] in live:
            live[event["addr"]] = {**live[event["addr"]], "frames": event.get("frames") or []}
    return list(live.values())


def _blocks(segments: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Live blocks by address. Old snapshots of torch's give a block no address: it follows from the sizes before it."""
    found = {}
    for segment in segments:
        sizes = [block["size"] for block in segment["blocks"]]
        starts = itertools.accumulate(sizes, initial=segment.get("address", 0))
        for block, start in zip(segment["blocks"], starts, strict=False):
            if str(block["state"]).startswith("active"):
                found[block.get("address", start)] = block
    return found


def _dropped(snapshot: dict[str, Any]) -> int:
    settings = snapshot.get("allocator_settings")
    dropped = settings.get("events_dropped", 0) if isinstance(settings, dict) else 0
    return dropped if isinstance(dropped, int) else 0


def place_of(frames: list[dict[str, Any]] | None) -> str | None:
    """``file:line function`` of the code that made a block; None without frames.

    That is the innermost Python frame outside of torch; else the innermost one of Python, else the innermost of all.
    """
    if not frames:
        return None
    python = [frame for frame in frames if not _is_native(frame)]
    own = [frame for frame in python if not any(folder in frame["filename"] for folder in _TORCH)]
    frame = (own or python or frames)[0]
    return f"{frame['filename']}:{frame['line']} {frame['name']}"


def _is_native(frame: dict[str, Any]) -> bool:
    """Whether it is of C++: torch's unwinder puts those in front, its own first of all."""
    file, name = frame["filename"], frame["name"]
    if file.endswith(".py") or file.startswith("<"):
        return False
    return file in ("", "??") or file.endswith(_NATIVE) or ".so." in file or "::" in name or "(" in name
