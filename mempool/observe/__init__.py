"""What is in memory, and which code put it there: snapshots, what their events tell, and metrics for monitoring."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mempool import _lazy

if TYPE_CHECKING:
    from mempool.observe.capture import CaptureHandle, capture_on_oom
    from mempool.observe.exporters import prometheus_collector, register_opentelemetry

__all__ = ["CaptureHandle", "capture_on_oom", "prometheus_collector", "register_opentelemetry"]

__getattr__, __dir__ = _lazy.exports(
    __name__,
    {
        "CaptureHandle": "mempool.observe.capture",
        "capture_on_oom": "mempool.observe.capture",
        "prometheus_collector": "mempool.observe.exporters",
        "register_opentelemetry": "mempool.observe.exporters",
    },
)
