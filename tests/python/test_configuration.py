"""MEMPOOL_CONF, torch's own settings, and a torch that does not match."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

import mempool
from mempool import _build, _core

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
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)\n"
        "mempool.enable()\n"
        "x = torch.ones(10 << 20); print(int(x.sum()))\n"
        "try: torch.ones(1 << 30)\n"
        "except mempool.OutOfMemoryError as error: print(mempool.oom_info(error)['reason'])\n"
        "y = torch.ones(10 << 20); print(int(y.sum()))"
    )
    assert done.stdout.split() == ["10485760", "backend_refused", "10485760"], done.stderr


def test_another_torch_is_refused_with_the_command_that_rebuilds() -> None:
    _build.check_torch()
    _build.check_torch(_core.torch_version.split("+")[0] + "+cu999")  # builds of one release share the interface
    for other in ("1.13.1+cpu", "99.0.0+cu999"):  # older or newer: the advice never names another torch
        with pytest.raises(ImportError) as caught:
            _build.check_torch(other)
        built, found = _core.torch_version.split("+")[0], other.split("+")[0]
        assert str(caught.value) == (
            f"mempool {mempool.__version__} was compiled for torch {built}, but torch {found} is installed. "
            "To rebuild it for that one, run `pip install --no-build-isolation --no-deps --force-reinstall .` "
            "in mempool's source folder."
        )


def test_the_import_itself_refuses_another_torch(python: Python) -> None:
    done = python("import torch; torch.__version__ = '1.13.1'; import mempool")
    assert done.returncode != 0
    assert "ImportError: mempool" in done.stderr
    assert "compiled for torch" in done.stderr


def test_the_version_is_one(python: Python) -> None:
    from importlib.metadata import version

    assert mempool.__version__ == version("mempool")
