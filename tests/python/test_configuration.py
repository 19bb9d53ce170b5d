"""MEMPOOL_CONF, torch's own settings, and a torch that does not match."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mempool
from mempool import _build, _torch_cpu

Python = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_environment_configures(python: Python) -> None:
    done = python(
        "import torch, mempool; mempool.enable(); print(mempool.get_limit(), mempool.get_limit(soft=True))",
        MEMPOOL_CONF="limit:1GiB, soft_limit:512MiB",
    )
    assert done.stdout.split() == [str(1 << 30), str(512 << 20)], done.stderr


def test_an_unknown_key_names_the_nearest(python: Python) -> None:
    done = python(
        "import torch, mempool\n"
        "try: mempool.enable()\n"
        "except mempool.ConfigError as error: print(error, mempool.is_enabled('cpu'))",
        MEMPOOL_CONF="limt:1GiB",
    )
    assert done.stdout.startswith("MEMPOOL_CONF: ")
    assert "'limt'" in done.stdout
    assert "'limit'" in done.stdout
    assert "False" in done.stdout


@pytest.mark.parametrize("conf", ["limit", "limit:12 GiBs", "huge_pages:perhaps", "history_events:-1", "limit:0"])
def test_bad_configurations_are_refused(python: Python, conf: str) -> None:
    done = python(
        "import torch, mempool\ntry: mempool.enable()\nexcept mempool.ConfigError as error: print(error)",
        MEMPOOL_CONF=conf,
    )
    assert done.stdout.startswith("MEMPOOL_CONF: "), done.stderr


def test_what_another_place_says_is_not_put_on_the_environment(python: Python) -> None:
    done = python(
        "import torch, mempool\n"
        "try: mempool.enable('cpu', limit='12 GiBs')\n"
        "except mempool.ConfigError as error: print(error)",
        MEMPOOL_CONF="limit:1GiB",
        THP_MEM_ALLOC_ENABLE="0",
    )
    assert "GiBs" in done.stdout, done.stderr
    assert "MEMPOOL_CONF" not in done.stdout


def test_torchs_settings_are_honoured_or_warned_about(python: Python) -> None:
    advice = (
        "import torch, mempool, re; mempool.enable(); x = torch.ones(16 << 20); here = x.data_ptr()\n"
        "for line in open('/proc/self/smaps'):\n"
        "    if found := re.match('([0-9a-f]+)-([0-9a-f]+) ', line):\n"
        "        inside = int(found[1], 16) <= here < int(found[2], 16)\n"
        "    elif line.startswith('VmFlags') and inside: print({'hg', 'nh'} & set(line.split()))\n"
    )
    assert python(advice).stdout.strip() == "{'hg'}"
    assert python(advice, THP_MEM_ALLOC_ENABLE="0").stdout.strip() == "{'nh'}"
    assert python(advice, THP_MEM_ALLOC_ENABLE="0", MEMPOOL_CONF="huge_pages:true").stdout.strip() == "{'hg'}"
    warned = python("import torch, mempool; mempool.enable()", PYTORCH_ALLOC_CONF="expandable_segments:True")
    assert "PYTORCH_ALLOC_CONF" in warned.stderr
    assert warned.returncode == 0


def test_it_works_without_huge_pages_without_caches_and_in_small_segments(python: Python) -> None:
    for conf in ("huge_pages:false", "thread_cache_bytes:0", "segment_bytes:2MiB"):
        done = python(
            "import torch, mempool; mempool.enable()\n"
            "x = [torch.full((n,), 1.0) for n in (1, 1000, 100_000, 10_000_000)]\n"
            "assert sum(float(t.sum()) for t in x) == 10_101_001\n"
            "del x; mempool.empty_cache(); print(mempool.memory_allocated(), mempool.memory_reserved())",
            MEMPOOL_CONF=conf,
        )
        assert done.stdout.split() == ["0", "0"], (conf, done.stderr)


def test_it_works_under_a_limit_on_address_space(python: Python) -> None:
    done = python(
        "import torch, mempool, resource\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)\n"
        "mempool.enable()\n"
        "x = torch.ones(10 << 20); print(int(x.sum()))\n"
        "try: torch.ones(1 << 30)\n"
        "except mempool.OutOfMemoryError as error: print(mempool.oom_info(error)['reason'])\n"
        "y = torch.ones(10 << 20); print(int(y.sum()))"
    )
    assert done.stdout.split() == ["10485760", "backend_refused", "10485760"], done.stderr


def test_another_torch_is_refused_with_the_command_that_rebuilds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for minor in ("2.9", "2.10", "2.13"):
        (tmp_path / f"torch-{minor}").mkdir()
    monkeypatch.setattr(_build, "_SHIMS", tmp_path)
    for served in ("2.9.1+cu128", "2.9.7", "2.10.0a0+git1234"):  # builds and patches of a minor share the interface
        assert _build.shim_folder(served) == tmp_path / f"torch-{'.'.join(served.split('.')[:2])}"
    # Older, newer, between and alike: the advice never names another torch.
    for other, release in (("1.13.1+cpu", "1.13.1"), ("99.0.0+cu999", "99.0.0"), ("2.11.0", "2.11.0"), ("2.1", "2.1")):
        with pytest.raises(ImportError) as caught:
            _build.shim_folder(other)
        assert str(caught.value) == (
            f"mempool {mempool.__version__} was compiled for torch 2.9, 2.10 and 2.13, but torch {release} is "
            "installed. To build it for that one, run `pip install --no-build-isolation --no-deps --force-reinstall .` "
            "in mempool's source folder."
        )


def test_a_newer_torch_than_any_tested_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = [path.stem for path in (Path(__file__).parents[1] / "releases").glob("torch-*.txt")]
    newest = max(int(name.split(".")[1]) for name in pinned)
    assert _torch_cpu.newest_tested_torch == f"2.{newest}"
    assert _build.notes() == [] or torch.version.cuda
    monkeypatch.setattr(torch, "__version__", f"2.{newest + 1}.0+cpu")
    assert _build.notes()[0] == (
        f"torch 2.{newest + 1} is newer than 2.{newest}, the newest release that mempool was tested with."
    )


def test_the_import_itself_refuses_another_torch(python: Python) -> None:
    done = python("import torch; torch.__version__ = '1.13.1'; import mempool")
    assert done.returncode != 0
    assert "ImportError: mempool" in done.stderr
    assert "compiled for torch" in done.stderr


def test_the_version_is_one(python: Python) -> None:
    from importlib.metadata import version

    assert mempool.__version__ == version("mempool")
