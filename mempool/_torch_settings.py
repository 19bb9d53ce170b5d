"""torch's settings of its own device allocators (``PYTORCH_ALLOC_CONF``): which of them do not hold with mempool."""

from __future__ import annotations

import re
import warnings

_SETTING = r"([^\s,:\[\]]+)\s*:\s*(\[[^\]]*\]|[^\s,\[\]]*)"

# With these values mempool does what is asked for, or nothing is asked for.
_HOLDS = {
    "backend": "native",
    "expandable_segments": "True",
    "graph_capture_record_stream_reuse": "False",
    "release_lock_on_cudamalloc": "False",
}
# With any value: a limit that mempool keeps, and an error that it raises anyway.
_HOLDS_ALWAYS = ("per_process_memory_fraction", "throw_on_cudamalloc_oom")
_PINNED = "pinned_"  # of pinned host memory, which is a device of its own here
# With these values it is as mempool's pinned memory is.
_PINNED_HOLDS = {"pinned_use_cuda_host_register": "True", "pinned_use_background_threads": "False"}

_SPLITS = "blocks of any size are split, and free memory is remapped into one range where a request needs it"
_INSTEAD = {
    "backend": "all CUDA memory comes from mempool",
    "expandable_segments": "memory is mapped by handles wherever the driver can",
    "garbage_collection_threshold": "memory goes back when it was not needed for decay_ms, and above soft_limit",
    "graph_capture_record_stream_reuse": "a block that other streams use is not reused before the capture has ended",
    "large_segment_size_mb": "memory grows by what requests need",
    "max_non_split_rounding_mb": _SPLITS,
    "max_split_size_mb": _SPLITS,
    "release_lock_on_cudamalloc": "each stream has a lock of its own, held while the driver is asked",
    "roundup_power2_divisions": "sizes are rounded to mempool's own classes",
}


def ignored_settings(text: str) -> list[str]:
    """For each setting that does not hold with mempool: its name and value, and what happens instead."""
    notes = []
    for key, value in re.findall(_SETTING, text):
        if key in _HOLDS_ALWAYS or key.startswith(_PINNED) or _HOLDS.get(key) == value:
            continue
        notes.append(f"{key}:{value} ({_INSTEAD.get(key, 'mempool knows no such setting')})")
    return notes


def ignored_pinned_settings(text: str) -> str:
    """The settings of pinned memory that do not hold with mempool's, with their values; empty for none."""
    pinned = ((key, value) for key, value in re.findall(_SETTING, text) if key.startswith(_PINNED))
    return ", ".join(f"{key}:{value}" for key, value in pinned if _PINNED_HOLDS.get(key) != value)


def ignored_message(notes: list[str]) -> str:
    return (
        f"mempool serves CUDA memory, and these settings of torch's own allocator do not hold: {'; '.join(notes)}. "
        "mempool's own are in MEMPOOL_CONF (`mempool options` lists its keys)."
    )


def warn_of_ignored(text: str) -> None:
    """For settings that are given at run time."""
    notes = ignored_settings(text)
    if notes:
        warnings.warn(ignored_message(notes), stacklevel=2)
