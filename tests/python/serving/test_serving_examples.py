"""Each script in ``examples/serving/`` serves, refuses, and tells its metrics.

Those of frameworks that are not installed are skipped; ``make test-frameworks`` installs each by itself, and runs them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from servers import free_port, running

EXAMPLES = Path(__file__).parents[3] / "examples" / "serving"
LARGE = 100_000  # rows, of 1 KiB each: more than a request's 64 MiB
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("MEMPOOL")}


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def serving(folder: Path, *arguments: str, port: int, **more: str) -> AbstractContextManager[str]:
    """A server of an example; its address. ``more``: of its environment."""
    env = {**CLEAN, "PYTHONPATH": os.pathsep.join([str(EXAMPLES), *sys.path]), "OMP_NUM_THREADS": "1", **more}
    return running([sys.executable, *arguments], port, folder, env)


def ask(url: str, body: object = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"} if data else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def await_answer(url: str, body: object = None) -> None:
    """Until it is 200: some servers listen before their workers serve."""
    deadline = time.monotonic() + 120
    while (answer := ask(url, body))[0] != 200:
        assert time.monotonic() < deadline, answer
        time.sleep(0.5)


def check(address: str) -> None:
    status, answer = ask(f"http://{address}/embed/100")
    assert (status, len(json.loads(answer))) == (200, 2)
    status, answer = ask(f"http://{address}/embed/{LARGE}")
    assert status == 503
    assert json.loads(answer)["reason"] == "pool_limit"
    assert ask(f"http://{address}/embed/100")[0] == 200


def test_fastapi(tmp_path: Path) -> None:
    port = free_port()
    arguments = ("-m", "uvicorn", "fastapi_app:app", "--host", "127.0.0.1", "--port", str(port))
    with serving(tmp_path, *arguments, "--limit-max-requests", "100", port=port) as address:
        check(address)
        metrics = ask(f"http://{address}/metrics/")[1]
    assert 'mempool_refusals_total{device="cpu",pool="requests",reason="pool_limit"} 1.0' in metrics
    assert f'mempool_allocated_bytes{{device="cpu",pool="encoder"}} {float((256 * 256 + 256) * 4)}' in metrics


@needs("gunicorn")
def test_gunicorn(tmp_path: Path) -> None:
    port = free_port()
    arguments = ("-m", "gunicorn", "gunicorn_app:app", "--preload", "--workers", "2", "--bind", f"127.0.0.1:{port}")
    with serving(tmp_path, *arguments, port=port) as address:
        # A worker is counted from its first bytes on, and the system gives it a request only while the other is busy.
        rounds = 0
        metrics = ""
        while 'mempool_shared_processes{device="cpu"} 3.0' not in metrics:
            assert rounds < 200, metrics
            with ThreadPoolExecutor(2) as clients:
                list(clients.map(check, [address, address]))
            rounds += 1
            metrics = ask(f"http://{address}/metrics")[1]
        time.sleep(1.5)  # each tells its metrics once a second
        metrics = ask(f"http://{address}/metrics")[1]
    assert f'mempool_refusals_total{{device="cpu",pool="requests",reason="pool_limit"}} {2.0 * rounds}' in metrics


def test_torchrun(tmp_path: Path) -> None:
    script = str(EXAMPLES / "torchrun_train.py")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script],
        cwd=tmp_path,
        env={**CLEAN, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("torchrun_train.py: at most ")]
    assert len(rows) == 2


@needs("ray")
@pytest.mark.timeout(600)
def test_ray_serve(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(
        "import signal, sys\n"
        "from ray import serve\n"
        "import ray_serve_app\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "serve.start(http_options={'host': '127.0.0.1', 'port': int(sys.argv[1])})\n"
        "serve.run(ray_serve_app.app)\n"
        "signal.sigtimedwait([signal.SIGUSR1], 300)\n"
    )
    port = free_port()
    with serving(tmp_path, "run.py", str(port), port=port) as address:
        await_answer(f"http://{address}/embed/1")
        check(address)


@needs("litserve")
def test_litserve(tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path, str(EXAMPLES / "litserve_app.py"), str(port), port=port) as address:
        await_answer(f"http://{address}/health")
        assert ask(f"http://{address}/predict", {"rows": 100})[0] == 200
        status, answer = ask(f"http://{address}/predict", {"rows": LARGE})
        assert status == 503
        assert "pool_limit" in answer
        assert ask(f"http://{address}/predict", {"rows": 100})[0] == 200


@needs("bentoml")
def test_bentoml(tmp_path: Path) -> None:
    port = free_port()
    arguments = ("-m", "bentoml", "serve", "bentoml_service:Encoder", "--port", str(port), "--host", "127.0.0.1")
    settings = {"BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"}
    with serving(tmp_path, *arguments, port=port, **settings) as address:
        await_answer(f"http://{address}/embed", {"rows": 1})
        status, answer = ask(f"http://{address}/embed", {"rows": LARGE})
        assert status == 503
        assert json.loads(answer)["error"] == "out_of_memory"  # BentoML has caught the error, which alone knows more
        assert ask(f"http://{address}/embed", {"rows": 100})[0] == 200


def test_every_example_is_short_and_tested() -> None:
    tested = {"fastapi_app", "gunicorn_app", "torchrun_train", "ray_serve_app", "litserve_app", "bentoml_service"}
    scripts = list(EXAMPLES.glob("*.py"))
    assert {path.stem for path in scripts} == tested
    assert all(len(path.read_text().splitlines()) <= 40 for path in scripts)
