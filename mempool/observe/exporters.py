"""The metrics for the systems that collect them: Prometheus and OpenTelemetry."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from mempool.observe.metrics import Family, Metrics, Workers

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from prometheus_client.registry import Collector

_ONE_READING_S = 0.1  # OpenTelemetry asks for one metric after the other


def prometheus_collector(workers: Workers | None = None) -> Collector:
    """A collector for prometheus_client: ``REGISTRY.register(mempool.observe.prometheus_collector())``.

    It reads at scrape, in a time that does not depend on how many pools there are. docs/metrics.md lists the metrics.
    A pool is shown under the ``metrics_label`` that it was given, else under its parent's, else as ``"other"``; its
    figures include those of the pools below it, as everywhere.

    Args:
        workers: what is shown where processes share a limit (``mempool.enable(..., shared=True)``): ``"sum"`` for
            all of them together, so that any worker behind a port may answer the scrape, ``"each"`` for each, with a
            label ``worker`` (a small number, which later workers use again), ``"own"`` for this process alone. None:
            ``"sum"`` where this process shares a limit when it is scraped, else ``"own"``. What others tell is up to a
            second old.

    Raises:
        ConfigError: `workers` is another word; ``"sum"`` or ``"each"`` in a process that shares no limit.
        ModuleNotFoundError: prometheus_client is not installed.
    """
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector

    metrics = Metrics(workers)

    def convert(families: Iterable[Family]) -> Iterator[Any]:
        for family in families:
            kind = CounterMetricFamily if family.is_counter else GaugeMetricFamily
            made = kind(family.name, family.help, labels=family.labels)
            for labels, value in family.samples:
                made.add_metric(labels, value)
            yield made

    class _Collector(Collector):
        def collect(self) -> Iterator[Any]:
            return convert(metrics.families())

        def describe(self) -> Iterator[Any]:
            return convert(metrics.described())

    return _Collector()


def register_opentelemetry(meter: Meter, workers: Workers | None = None) -> None:
    """The same metrics as observable instruments of a meter of OpenTelemetry.

    ``register_opentelemetry(opentelemetry.metrics.get_meter("mempool"))``. Names have dots, and units are apart:
    ``mempool_held_bytes`` is ``mempool.held`` in ``By``, ``mempool_moves_total`` is ``mempool.moves``.

    Args:
        meter: of ``opentelemetry.metrics``.
        workers: as for :func:`prometheus_collector`; ``"own"`` where each process exports its own.

    Raises:
        ConfigError: as prometheus_collector does.
        ModuleNotFoundError: opentelemetry-api is not installed.
    """
    from opentelemetry.metrics import Observation

    reading = _Reading(Metrics(workers))

    def observe(name: str) -> Callable[[Any], Iterator[Any]]:
        def callback(options: Any) -> Iterator[Any]:
            family = reading.family(name)
            for labels, value in family.samples:
                yield Observation(value, dict(zip(family.labels, labels, strict=True)))

        return callback

    for family in Metrics(workers).described():
        name = family.name.removesuffix("_total")
        is_bytes = name.endswith("_bytes")
        create = meter.create_observable_counter if family.is_counter else meter.create_observable_gauge
        create(
            name.removesuffix("_bytes").replace("mempool_", "mempool.", 1),
            callbacks=[observe(family.name)],
            unit="By" if is_bytes else "1",
            description=family.help,
        )


class _Reading:
    """One reading for the metrics that are asked for together. It has no lock, which a fork could leave taken."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last: tuple[float, dict[str, Family]] = (float("-inf"), {})

    def family(self, name: str) -> Family:
        read_at, families = self._last
        if time.monotonic() - read_at > _ONE_READING_S:
            families = {each.name: each for each in self._metrics.families()}
            self._last = (time.monotonic(), families)
        return families[name]
