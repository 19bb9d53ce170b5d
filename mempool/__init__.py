"""Memory that a PyTorch user can control.

>>> import mempool
>>> mempool.enable()
{'cpu': True, ...}

From that line on every new CPU and CUDA tensor comes from mempool's allocator; pools, limits and statistics belong to
you.

A size is ``int`` bytes or text, ``"1.5GiB"``; a limit may also be a percentage of the device's memory, ``"50%"``. A
device is ``"cpu"``, ``"cuda"``, ``"cuda:1"``, a ``torch.device`` or the number of a CUDA device, or ``"pinned"`` for
pinned host memory; None means the only enabled one, where a function says nothing else. ConfigError is raised for an
unknown device, DeviceError for one that cannot be used, and for None when no device or several are enabled.
*Allocated* bytes are those of live blocks, rounded up; *held* bytes (torch: reserved) are those taken from the system.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import _mempool_autoload
from mempool import _build, _lazy

__path__.append(str(_build.shim_folder()))  # the modules that link torch are those of the release that runs

from mempool._build import __version__  # noqa: E402
from mempool._device_cuda import cuda_library_path  # noqa: E402
from mempool.control import (  # noqa: E402
    DefragmentReport,
    defragment,
    disable,
    empty_cache,
    enable,
    get_limit,
    is_enabled,
    reserve,
    set_limit,
    trim,
)
from mempool.coroutines import bind, in_pool, to_thread  # noqa: E402
from mempool.errors import (  # noqa: E402
    ConfigError,
    DeviceError,
    NotEnabledError,
    OutOfMemoryError,
    PoolAsleepError,
    PoolClosedError,
    PoolStateError,
    SnapshotError,
    TraceError,
)
from mempool.following import FollowHandle, follow_context  # noqa: E402
from mempool.packed import formats as _registers_operators  # noqa: E402, F401
from mempool.pools import MemoryPool, PoolInfo, list_pools  # noqa: E402
from mempool.pressure import PressureHandle, on_pressure, oom_info  # noqa: E402
from mempool.scopes import current_pool, leave_pools, use_pool  # noqa: E402
from mempool.stats import (  # noqa: E402
    max_memory_allocated,
    max_memory_reserved,
    memory_allocated,
    memory_reserved,
    memory_stats,
    memory_summary,
    reset_accumulated_memory_stats,
    reset_peak_memory_stats,
)

if TYPE_CHECKING:
    from mempool import checkpoint, compress, nn, observe, ops, serving
    from mempool.adoption import AdoptReport, adopt
    from mempool.observe.snapshot import dump_snapshot, load_snapshot, memory_snapshot, record_history
    from mempool.shared_memory import ProcessMemory, SharedMemoryReport, shared_report
    from mempool.traces.recording import TraceRecording, record_trace
    from mempool.traces.replaying import ReplayReport, replay

__all__ = [
    "__version__",
    # the switch
    "enable",
    "disable",
    "is_enabled",
    "cuda_library_path",
    # statistics, named as in torch.cuda.memory
    "memory_allocated",
    "max_memory_allocated",
    "memory_reserved",
    "max_memory_reserved",
    "memory_stats",
    "memory_summary",
    "reset_peak_memory_stats",
    "reset_accumulated_memory_stats",
    # snapshots
    "memory_snapshot",
    "dump_snapshot",
    "load_snapshot",
    "record_history",
    # pools
    "MemoryPool",
    "use_pool",
    "in_pool",
    "bind",
    "to_thread",
    "follow_context",
    "FollowHandle",
    "current_pool",
    "leave_pools",
    "adopt",
    "AdoptReport",
    "list_pools",
    "PoolInfo",
    # limits and pressure
    "set_limit",
    "get_limit",
    "shared_report",
    "SharedMemoryReport",
    "ProcessMemory",
    "reserve",
    "empty_cache",
    "trim",
    "defragment",
    "DefragmentReport",
    "on_pressure",
    "PressureHandle",
    "oom_info",
    # traces
    "record_trace",
    "TraceRecording",
    "replay",
    "ReplayReport",
    # compressed weights
    "checkpoint",
    "compress",
    "nn",
    "ops",
    # services, and watching them
    "observe",
    "serving",
    # errors
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

__getattr__, __dir__ = _lazy.exports(
    __name__,
    {
        **{name: f"mempool.{name}" for name in ("checkpoint", "compress", "nn", "observe", "ops", "serving")},
        **dict.fromkeys(
            ("dump_snapshot", "load_snapshot", "memory_snapshot", "record_history"), "mempool.observe.snapshot"
        ),
        **dict.fromkeys(("AdoptReport", "adopt"), "mempool.adoption"),
        **dict.fromkeys(("ProcessMemory", "SharedMemoryReport", "shared_report"), "mempool.shared_memory"),
        **dict.fromkeys(("TraceRecording", "record_trace"), "mempool.traces.recording"),
        **dict.fromkeys(("ReplayReport", "replay"), "mempool.traces.replaying"),
    },
)

if os.environ.get("MEMPOOL_CAPTURE_ON_OOM"):
    from mempool.observe import capture as _capture

    _capture.start_as_asked(os.environ["MEMPOOL_CAPTURE_ON_OOM"])

_mempool_autoload.finish()
