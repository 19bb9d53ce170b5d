"""What monitoring reads: gauges and counters of devices and of labelled pools, whichever system they are for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mempool import _core
from mempool._device import KINDS
from mempool.errors import ConfigError

Workers: TypeAlias = Literal["own", "sum", "each"]
Values: TypeAlias = dict[str, int]  # by the name of a figure; a limit that is not there is left out
Key: TypeAlias = tuple[str, str]  # of a device and, for pools, of a label

_REFUSED = "refusals."  # and the reason: such figures are counters

# Name of the metric and help, by the name of the figure.
_POOL = {
    "allocated_bytes": ("mempool_allocated_bytes", "Bytes of live blocks of the pools with this label."),
    "allocated_peak_bytes": ("mempool_allocated_peak_bytes", "The most that mempool_allocated_bytes was."),
    "requested_bytes": ("mempool_requested_bytes", "Bytes that were asked for, of live blocks."),
    "blocks": ("mempool_blocks", "Live blocks of the pools with this label."),
    "pools": ("mempool_pools", "Pools with this label: open ones, and those that still have live blocks."),
    "limit_bytes": ("mempool_limit_bytes", "The sum of the limits of these pools; absent where one has none."),
    "pressure_calls": ("mempool_pressure_calls_total", "Calls of pressure callbacks for these pools."),
    "refusals": ("mempool_refusals_total", "Requests that were refused, by pools with this label or by their limits."),
}
_DEVICE = {
    "allocated_bytes": ("mempool_device_allocated_bytes", "Bytes of live blocks."),
    "allocated_peak_bytes": ("mempool_device_allocated_peak_bytes", "The most that these bytes were."),
    "requested_bytes": ("mempool_device_requested_bytes", "Bytes that were asked for, of live blocks."),
    "blocks": ("mempool_device_blocks", "Live blocks."),
    "held_bytes": ("mempool_held_bytes", "Physical memory that is held: live blocks, caches and free memory."),
    "held_peak_bytes": ("mempool_held_peak_bytes", "The most that mempool_held_bytes was."),
    "limit_bytes": ("mempool_device_limit_bytes", "The limit of held bytes; absent where there is none."),
    "soft_limit_bytes": ("mempool_device_soft_limit_bytes", "The soft limit of held bytes."),
    "outside_bytes": ("mempool_outside_bytes", "Held beside mempool on the device; it counts in its limit."),
    "pressure_calls": ("mempool_device_pressure_calls_total", "Calls of pressure callbacks."),
    "alloc_retries": ("mempool_alloc_retries_total", "Requests that were served after memory was reclaimed."),
    "moves": ("mempool_moves_total", "Free memory that was moved to make a larger range, in pieces."),
    "moved_bytes": ("mempool_moved_bytes_total", "The same in bytes."),
    "commits": ("mempool_commits_total", "Pieces of memory that were taken from the system or driver."),
    "decommits": ("mempool_decommits_total", "Pieces of memory that were given back."),
    "decayed_bytes": ("mempool_decayed_bytes_total", "Unused memory that was given back in the background."),
    "refusals": ("mempool_device_refusals_total", "Requests that were refused."),
}
_SHARED = {
    "limit": ("mempool_shared_limit_bytes", "The limit of what all processes hold together; absent for none."),
    "held": ("mempool_shared_held_bytes", "Physical memory that all processes with a shared limit hold together."),
    "peak": ("mempool_shared_held_peak_bytes", "The most that they held at one moment."),
    "processes": ("mempool_shared_processes", "Processes that share the limit."),
}
_KINDS = {True: dict(_core.device_figures), False: dict(_core.pool_figures)}  # of a figure, by whether it is a device's


@dataclass(frozen=True)
class Family:
    """One metric and its samples."""

    name: str  # of a counter with "_total"
    help: str
    is_counter: bool
    labels: tuple[str, ...]  # names of labels
    samples: list[tuple[tuple[str, ...], int]] = field(default_factory=list)  # (their values, the figure)


@dataclass
class _Worker:
    """Figures of one process, or of several together."""

    devices: dict[Key, Values] = field(default_factory=dict)
    pools: dict[Key, Values] = field(default_factory=dict)

    @staticmethod
    def of(devices: Iterable[tuple[str, _core.Metrics]]) -> _Worker:
        made = _Worker()
        for name, (device, pools) in devices:
            made.devices[name, ""] = _values(_core.device_figures, device)
            for label, each in pools.items():
                made.pools[name, label] = _values(_core.pool_figures, each)
        return made


def _values(table: tuple[tuple[str, str], ...], read: _core.Figures) -> Values:
    figures, refusals = read
    values = {name: value for (name, kind), value in zip(table, figures, strict=True) if kind != "limit" or value >= 0}
    return values | {f"{_REFUSED}{reason}": n for reason, n in zip(_core.oom_reasons, refusals, strict=True)}


def _together(rows: list[Values], kinds: dict[str, str]) -> Values:
    """Those of several processes as one; ``kinds`` says how."""
    out: Values = {}
    for name in {name: None for row in rows for name in row}:
        values = [row[name] for row in rows if name in row]
        kind = kinds.get(name, "counter")
        if kind == "limit" and any(name not in row and row.get("pools") != 0 for row in rows):
            continue  # somebody has pools of this label without a limit, or a device without one
        out[name] = max(values) if kind == "peak" else sum(values)
    return out


def _sum(workers: list[_Worker], ended: _Worker) -> _Worker:
    """One for all; of those that have ended the counters alone are known."""
    total = _Worker()
    for is_device, part in ((True, "devices"), (False, "pools")):
        kinds = _KINDS[is_device]
        parts: list[dict[Key, Values]] = [getattr(each, part) for each in workers]
        past: dict[Key, Values] = getattr(ended, part)
        into: dict[Key, Values] = getattr(total, part)
        for key in dict.fromkeys(key for each in (*parts, past) for key in each):
            into[key] = _together([each[key] for each in parts if key in each], kinds)
            for name, value in past.get(key, {}).items():
                if kinds.get(name, "counter") == "counter":
                    into[key][name] = into[key].get(name, 0) + value
    return total


def _read(workers: Workers) -> list[tuple[tuple[str, ...], _Worker]]:
    """With the value of the label ``worker``, where each is shown."""
    if workers == "own":
        made = (each for kind in KINDS.values() for each in kind.made())
        return [((), _Worker.of((device.name, device.metrics()) for device in made))]
    known = {slot: _Worker.of(devices) for slot, _, _, devices in _core.shared_metrics()}
    ended = known.pop(-1, _Worker())
    if workers == "sum":
        return [((), _sum(list(known.values()), ended))]
    return [((str(slot),), each) for slot, each in known.items()]


class Metrics:
    """Reads them. ``workers``: as for :func:`mempool.observe.prometheus_collector`.

    Raises ConfigError for another word, and for "sum" and "each" in a process that shares no limit.
    """

    def __init__(self, workers: Workers | None = None) -> None:
        if workers not in (None, "own", "sum", "each"):
            raise ConfigError(f'workers is "own", "sum" or "each", not {workers!r}.')
        if workers in ("sum", "each") and not _core.ledger_path():
            raise ConfigError(
                f"workers={workers!r}: this process shares nothing with others. Call mempool.enable(..., shared=True) "
                "first, or run it by `mempool run --shared`."
            )
        self._workers = workers

    def families(self) -> list[Family]:
        """All metrics, as they are now."""
        workers = self._workers or ("sum" if _core.ledger_path() else "own")
        extra = ("worker",) if workers == "each" else ()
        families = _empty(extra)
        for which, worker in _read(workers):
            for part, prefix, labels in ((worker.devices, "device.", 1), (worker.pools, "pool.", 2)):
                for key, values in part.items():
                    _put(families, prefix, (*key[:labels], *which), values)
        if workers != "own":
            for device, limit, held, peak, processes in _core.shared_figures():
                alive = sum(1 for _, _, is_alive, _, _ in processes if is_alive)
                for name, value in (("limit", limit), ("held", held), ("peak", peak), ("processes", alive)):
                    if value is not None:
                        families[f"shared.{name}"].samples.append(((device,), value))
        return list(families.values())

    def described(self) -> list[Family]:
        """The same without samples, which reads nothing."""
        return list(_empty(("worker",) if self._workers == "each" else ()).values())


def _empty(extra: tuple[str, ...]) -> dict[str, Family]:
    tables: list[tuple[str, dict[str, tuple[str, str]], Callable[[str], bool], tuple[str, ...]]] = [
        ("pool.", _POOL, lambda name: _KINDS[False].get(name, "counter") == "counter", ("device", "pool", *extra)),
        ("device.", _DEVICE, lambda name: _KINDS[True].get(name, "counter") == "counter", ("device", *extra)),
        ("shared.", _SHARED, lambda _: False, ("device",)),
    ]
    return {
        f"{prefix}{figure}": Family(
            name, text, is_counter(figure), (*labels, "reason") if figure == "refusals" else labels
        )
        for prefix, table, is_counter, labels in tables
        for figure, (name, text) in table.items()
    }


def _put(families: dict[str, Family], prefix: str, labels: tuple[str, ...], values: Values) -> None:
    for name, value in values.items():
        if name.startswith(_REFUSED):
            families[f"{prefix}refusals"].samples.append(((*labels, name.removeprefix(_REFUSED)), value))
        else:
            families[f"{prefix}{name}"].samples.append((labels, value))
