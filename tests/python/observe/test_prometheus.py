"""The alert rules, the dashboard, and a real Prometheus that scrapes a service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from servers import free_port, running

from mempool.observe.metrics import Metrics

MONITORING = Path(__file__).parents[3] / "docs" / "monitoring"
DOWNLOADED = Path(__file__).parents[3] / "build" / "prometheus" / "usr" / "bin"  # by `make build/prometheus`
MIB = 1 << 20
APP = """
import fastapi, torch, prometheus_client
from mempool.observe import prometheus_collector
from mempool.serving import PoolMiddleware

prometheus_client.REGISTRY.register(prometheus_collector())
app = fastapi.FastAPI()
app.mount("/metrics", prometheus_client.make_asgi_app())
kept = []

@app.get("/keep/{mib}")
def keep(mib: int) -> int:
    kept.append(torch.empty(mib << 20, dtype=torch.uint8))
    return len(kept)

served = PoolMiddleware(app, limit="16MiB", app_limit="64MiB", name="shop")
"""
CONFIGURATION = """
global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}
rule_files: [{rules}]
scrape_configs: [{{job_name: shop, metrics_path: /metrics/, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]
"""


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=DOWNLOADED)
    if found is None:
        pytest.skip(f"there is no {name}")
    return found


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def test_rules_and_dashboard_ask_for_metrics_that_there_are() -> None:
    known = {family.name for family in Metrics("own").described()}
    for file in ("prometheus-rules.yml", "grafana-dashboard.json"):
        asked = set(re.findall(r"\bmempool_\w+", (MONITORING / file).read_text()))
        assert asked
        assert asked <= known


def test_the_rules_are_well_formed() -> None:
    checked = subprocess.run(
        [program("promtool"), "check", "rules", str(MONITORING / "prometheus-rules.yml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_prometheus_scrapes_a_service(tmp_path: Path) -> None:
    prometheus = program("prometheus")
    port, own = free_port(), free_port()
    (tmp_path / "app.py").write_text(APP)
    rules = MONITORING / "prometheus-rules.yml"
    (tmp_path / "prometheus.yml").write_text(CONFIGURATION.format(rules=rules, port=port))
    service = [sys.executable, "-m", "uvicorn", "app:served", "--host", "127.0.0.1", "--port", str(port)]
    collector = [prometheus, "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{own}"]

    def value(query: str) -> float:
        """Once the sample is there and has come to rest, as the next scrape tells."""
        url = f"http://127.0.0.1:{own}/api/v1/query?query={urllib.parse.quote(query)}"
        deadline, last = time.monotonic() + 60, None
        while time.monotonic() < deadline:
            result = get(url)["data"]["result"]
            if len(result) == 1:
                now = float(result[0]["value"][1])
                if now == last:
                    return now
                last = now
            time.sleep(1.2)
        raise AssertionError(f"{query}: {result}")

    with ExitStack() as stack:
        stack.enter_context(running([*service, "--limit-max-requests", "1000"], port, tmp_path))
        stack.enter_context(running(collector, own, tmp_path))
        assert get(f"http://127.0.0.1:{port}/keep/10") == 1
        with pytest.raises(urllib.error.HTTPError, match="503"):
            get(f"http://127.0.0.1:{port}/keep/20")
        labels = '{job="shop",device="cpu",pool="shop"}'
        assert value(f"mempool_allocated_bytes{labels}") == 10 * MIB
        assert value(f"mempool_limit_bytes{labels}") == 64 * MIB
        assert value('mempool_refusals_total{pool="shop",reason="pool_limit"}') == 1
        loaded = get(f"http://127.0.0.1:{own}/api/v1/rules")["data"]["groups"]
        assert {rule["health"] for group in loaded for rule in group["rules"]} == {"ok"}
