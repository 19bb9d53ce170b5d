"""Metrics: what is read equals the statistics, whichever process is asked."""

from __future__ import annotations

import gc
import json
import re
import subprocess
from collections.abc import Callable, Iterator

import pytest
import torch

import mempool
from mempool.observe import prometheus_collector, register_opentelemetry

core = pytest.importorskip("prometheus_client")

MIB = 1 << 20
Samples = dict[tuple[str, ...], float]
Python = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def enabled() -> Iterator[None]:
    mempool.enable("cpu")
    yield
    mempool.set_limit(None, device="cpu")


def block(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8)


def scraped(workers: str | None = None) -> Samples:
    """Each sample by its name and the values of its labels."""
    registry = core.CollectorRegistry()
    registry.register(prometheus_collector(workers))
    found = {}
    for line in core.generate_latest(registry).decode().splitlines():
        if line.startswith("#"):
            continue
        name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line).groups()
        found[(name, *re.findall(r'"([^"]*)"', labels or ""))] = float(value)
    return found


def test_every_figure_of_a_labelled_pool_equals_its_statistics(enabled: None) -> None:
    model = mempool.MemoryPool("a measured model", limit="64MiB", metrics_label="measured")
    request = mempool.MemoryPool("request", parent=model, limit="16MiB")
    mempool.on_pressure(lambda pool, needed: None).remove()
    with mempool.use_pool(model):
        held = [block(3), torch.empty(1000)]
        block(5)
    with mempool.use_pool(request):
        held.append(block(7))
        with pytest.raises(mempool.OutOfMemoryError):
            block(20)
    found = scraped()
    stats = model.stats()
    info = next(each for each in mempool.list_pools("cpu") if each.name == "a measured model")
    own = ("cpu", "measured")
    assert found[("mempool_allocated_bytes", *own)] == info.used_bytes == stats["allocated_bytes.current"]
    assert found[("mempool_allocated_peak_bytes", *own)] == info.peak_bytes == stats["allocated_bytes.peak"]
    assert found[("mempool_requested_bytes", *own)] == stats["requested_bytes.current"] < info.used_bytes
    assert found[("mempool_blocks", *own)] == stats["allocation.current"] == 3
    assert found[("mempool_limit_bytes", *own)] == 64 * MIB
    assert found[("mempool_pools", *own)] == 2
    assert found[("mempool_refusals_total", *own, "pool_limit")] == 1
    assert found[("mempool_refusals_total", *own, "device_limit")] == 0
    del held
    assert scraped()[("mempool_allocated_bytes", *own)] == 0


def test_every_figure_of_a_device_equals_its_statistics(enabled: None) -> None:
    held = [block(2), torch.empty(1000)]
    block(9)
    mempool.set_limit("8GiB", device="cpu")
    before = mempool.memory_stats("cpu")
    found = scraped()
    assert mempool.memory_stats("cpu") == before  # nothing came between
    for metric, key in {
        "device_allocated_bytes": "allocated_bytes.all.current",
        "device_allocated_peak_bytes": "allocated_bytes.all.peak",
        "device_requested_bytes": "requested_bytes.all.current",
        "device_blocks": "allocation.all.current",
        "held_bytes": "reserved_bytes.all.current",
        "held_peak_bytes": "reserved_bytes.all.peak",
        "outside_bytes": "outside_bytes",
        "device_pressure_calls_total": "num_pressure_calls",
        "alloc_retries_total": "num_alloc_retries",
        "moves_total": "num_moves",
        "moved_bytes_total": "moved_bytes",
        "commits_total": "num_device_alloc",
        "decommits_total": "num_device_free",
    }.items():
        assert found[f"mempool_{metric}", "cpu"] == before[key], metric
    assert found["mempool_device_limit_bytes", "cpu"] == 8 << 30
    assert ("mempool_device_soft_limit_bytes", "cpu") not in found
    refused = [value for key, value in found.items() if key[:2] == ("mempool_device_refusals_total", "cpu")]
    assert sum(refused) == before["num_ooms"]
    del held


def test_pools_without_a_label_are_one_series_however_many_there_are(enabled: None) -> None:
    gc.collect()  # pools that errors of other tests keep
    first = mempool.MemoryPool("without a limit")  # with it, all of them together have none
    before = scraped()
    pools = [first, *(mempool.MemoryPool(f"request {i}") for i in range(1000))]
    held = []
    for pool in pools[:3]:
        with mempool.use_pool(pool):
            held.append(block(1))
    found = scraped()
    assert found.keys() == before.keys()
    other = ("mempool_allocated_bytes", "cpu", "other")
    assert found[other] - before[other] == 3 * MIB
    assert found[("mempool_pools", "cpu", "other")] - before[("mempool_pools", "cpu", "other")] == 1000
    del held


@pytest.mark.parametrize("label", ["", "two\nlines", "x" * 48, "ü" * 24, 3])
def test_a_label_that_is_none_is_refused(enabled: None, label: object) -> None:
    with pytest.raises(mempool.ConfigError, match="metrics_label"):
        mempool.MemoryPool("pool", metrics_label=label)  # type: ignore[arg-type]


def test_a_process_has_64_labels(enabled: None) -> None:
    kept: list[mempool.MemoryPool] = []
    with pytest.raises(mempool.ConfigError, match="64 labels"):
        kept.extend(mempool.MemoryPool("pool", metrics_label=f"label {i}") for i in range(65))
    kept.clear()
    assert mempool.MemoryPool("pool", metrics_label="another").name == "pool"  # those are gone


def test_workers_are_a_word_that_is_known_and_share_a_limit(enabled: None) -> None:
    with pytest.raises(mempool.ConfigError, match="own"):
        prometheus_collector("all")  # type: ignore[arg-type]
    with pytest.raises(mempool.ConfigError, match="shares nothing"):
        prometheus_collector("sum")


SHARED = """
import json, os, re, time, torch, mempool, prometheus_client
from mempool.observe import prometheus_collector

def scraped(workers):
    registry = prometheus_client.CollectorRegistry()
    registry.register(prometheus_collector(workers))
    lines = prometheus_client.generate_latest(registry).decode().splitlines()
    return {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if not line.startswith("#")}

def block(mib):
    return torch.empty(mib << 20, dtype=torch.uint8)

mempool.enable("cpu", limit="1GiB", shared=True)
app = mempool.MemoryPool("app", limit="32MiB", metrics_label="app")
once = mempool.MemoryPool("once", limit="8MiB", metrics_label="once")
with mempool.use_pool(app):
    loaded = block(20)  # before the fork: it is the parent's
ready, go = os.pipe(), os.pipe()
children = []
for i in range(3):
    pid = os.fork()
    if pid == 0:
        if i == 0:
            once.close()
            del once
        with mempool.use_pool(app):
            own = block(4)
            for _ in range(i + 1):
                try:
                    block(40)
                except torch.OutOfMemoryError:
                    pass
        time.sleep(2.2)  # until it has told so
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    children.append(pid)
for _ in children:
    os.read(ready[0], 1)
together, each = scraped("sum"), scraped("each")
os.write(go[1], b"xxx")
for pid in children:
    os.waitpid(pid, 0)
print(json.dumps([together, each, scraped(None), scraped("own")]))
"""


def test_any_worker_tells_of_all_and_those_that_end_leave_their_counters(python: Python) -> None:
    done = python(SHARED)
    assert done.returncode == 0, done.stderr
    together, each, after, alone = json.loads(done.stdout)
    allocated, refused = '{device="cpu",pool="app"}', '{device="cpu",pool="app",reason="pool_limit"}'
    assert together[f"mempool_allocated_bytes{allocated}"] == (20 + 3 * 4) * MIB
    assert together[f"mempool_allocated_peak_bytes{allocated}"] == 20 * MIB
    assert together[f"mempool_limit_bytes{allocated}"] == 4 * 32 * MIB
    # A worker without such a pool is no worker without a limit.
    assert together['mempool_limit_bytes{device="cpu",pool="once"}'] == 3 * 8 * MIB
    assert together[f"mempool_refusals_total{refused}"] == 1 + 2 + 3
    assert together['mempool_shared_processes{device="cpu"}'] == 4
    assert together['mempool_shared_limit_bytes{device="cpu"}'] == 1 << 30
    assert together['mempool_shared_held_bytes{device="cpu"}'] == together['mempool_held_bytes{device="cpu"}']
    own = 'mempool_allocated_bytes{device="cpu",pool="app"'
    shares = sorted(value for key, value in each.items() if key.startswith(own))
    assert shares == [4 * MIB] * 3 + [20 * MIB]
    assert after[f"mempool_allocated_bytes{allocated}"] == 20 * MIB
    assert after[f"mempool_refusals_total{refused}"] == 1 + 2 + 3
    assert after['mempool_shared_processes{device="cpu"}'] == 1
    assert alone[f"mempool_refusals_total{refused}"] == 0


def test_opentelemetry_has_the_same_figures(enabled: None) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    register_opentelemetry(provider.get_meter("mempool"))
    pool = mempool.MemoryPool("pool", metrics_label="telemetry")
    with mempool.use_pool(pool):
        held = block(3)
    data = reader.get_metrics_data()
    metrics = {each.name: each for each in data.resource_metrics[0].scope_metrics[0].metrics}
    points = {point.attributes["pool"]: point.value for point in metrics["mempool.allocated"].data.data_points}
    assert points["telemetry"] == 3 * MIB
    assert metrics["mempool.allocated"].unit == "By"
    assert metrics["mempool.moves"].unit == "1"
    assert metrics["mempool.moves"].data.is_monotonic
    held_now = mempool.memory_reserved("cpu")
    assert [point.value for point in metrics["mempool.held"].data.data_points] == [held_now]
    provider.shutdown()
    del held
