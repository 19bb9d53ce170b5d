"""Mistakes of users, each in a process of its own, end with an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from refusing import REFUSED

PRELUDE = (
    """
import torch, mempool
torch.backends.cudnn.enabled = False
"""
    + REFUSED
)

Run = Callable[..., str]


def test_disabling_and_enabling_again(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
assert mempool.enable("cuda") == mempool.enable("cuda") == {"cuda": True}
assert mempool.is_enabled("cuda") and not mempool.is_enabled("cpu")
mempool.disable("cpu")  # which is not enabled
assert mempool.is_enabled("cuda")
mempool.disable()
assert not mempool.is_enabled("cuda")
refused(lambda: mempool.use_pool(mempool.MemoryPool("x", device="cuda")).__enter__(), mempool.NotEnabledError, "cuda")
assert mempool.enable("cuda") == {"cuda": True}
assert torch.zeros(10).cuda().cpu().sum() == 0
"""
    )


def test_devices_that_do_not_exist(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
mempool.enable("cuda")
refused(lambda: mempool.memory_allocated("cuda:7"), mempool.DeviceError, "no such device", "sees 1")
refused(lambda: mempool.MemoryPool("x", device="cuda:7"), mempool.DeviceError, "no such device")
refused(lambda: mempool.memory_allocated("xpu"), mempool.ConfigError, "'cpu', 'cuda' and 'pinned'")
refused(lambda: torch.empty(10, device="cuda:7"), Exception, "device")
refused(lambda: torch._C._cuda_memoryStats(7), RuntimeError, "device")
"""
    )


@pytest.mark.gpus(0)
def test_no_device_at_all(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
refused(lambda: mempool.enable("cuda"), mempool.DeviceError, "no CUDA device")
assert mempool.enable() == {"cpu": True, "cuda": "torch finds no CUDA device"}
assert torch.ones(10).sum() == 10
"""
    )


def test_both_devices_need_a_name(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
assert mempool.enable() == {"cpu": True, "cuda": True}
refused(mempool.memory_allocated, mempool.DeviceError, "name the device")
assert mempool.memory_allocated("cpu") == mempool.memory_allocated("cuda") == 0
refused(lambda: mempool.MemoryPool("x", device="cuda", parent=mempool.MemoryPool("y", device="cpu")),
        mempool.ConfigError, "cannot have a parent")
"""
    )


def test_a_wrong_option_installs_nothing(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
refused(lambda: mempool.enable("cuda"), mempool.ConfigError, "Did you mean 'limit'")
assert not mempool.is_enabled("cuda")
""",
        MEMPOOL_CONF="limt:1GiB",
    )


def test_a_limit_from_the_start(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
refused(lambda: mempool.enable("cuda", limit="many"), mempool.ConfigError, "many")
mempool.enable("cuda", limit="50%")
total = torch.cuda.get_device_properties(0).total_memory
torch.zeros(10).cuda()
assert mempool.get_limit("cuda") == total // 2, (mempool.get_limit("cuda"), total)
mempool.enable("cuda", limit="1GiB")
assert mempool.get_limit("cuda") == 1 << 30
refused(lambda: torch.empty(2 << 30, dtype=torch.uint8, device="cuda"), mempool.OutOfMemoryError, "device_limit")
"""
    )


@pytest.mark.gpus(2)
def test_a_stream_of_another_device(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
mempool.enable("cuda")
other = torch.cuda.Stream(device=1)
kept = torch.empty(1 << 22, dtype=torch.uint8, device="cuda:0")
kept.record_stream(other)  # legal: a copy between devices is enqueued there
del kept
torch.cuda.synchronize(1)
torch.cuda.empty_cache()
assert torch.cuda.memory_reserved(0) == 0
"""
    )


def test_a_forked_child_is_told(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
import os
mempool.enable()
kept = torch.ones(1000).cuda()
child = os.fork()
if child == 0:
    try:
        refused(lambda: torch.cuda.caching_allocator_alloc(100), RuntimeError, "fork")
        del kept  # a free that must touch nothing
        assert torch.ones(10).sum() == 10  # the CPU side works on
    except BaseException:
        import traceback; traceback.print_exc()
        os._exit(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(kept.cpu(), torch.ones(1000))
"""
    )


def test_the_stock_pluggable_allocator(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
import ctypes
path = mempool.cuda_library_path()
stock = torch.cuda.memory.CUDAPluggableAllocator(path, "mempool_malloc", "mempool_free")
library = ctypes.CDLL(path)
own = stock.allocator()
address = lambda name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value
own.set_record_stream_fn(address("mempool_record_stream"))
torch.cuda.memory.change_current_allocator(stock)
kept = torch.arange(1000.0).cuda()
assert torch.equal(kept.cpu(), torch.arange(1000.0))
assert mempool.memory_allocated("cuda") == 4096
side = torch.cuda.Stream()
kept.record_stream(side)
refused(lambda: torch.empty(1 << 50, dtype=torch.uint8, device="cuda"), torch.OutOfMemoryError, "out of memory")
del kept
torch.cuda.synchronize()
"""
    )


STOCK = """
import ctypes
path = mempool.cuda_library_path()
torch.cuda.memory.change_current_allocator(
    torch.cuda.memory.CUDAPluggableAllocator(path, "mempool_malloc", "mempool_free"))
"""


def test_the_stock_pluggable_allocator_reads_the_options(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + STOCK
        + """
kept = torch.zeros(10).cuda()
assert mempool.get_limit("cuda") == 64 << 20
refused(lambda: torch.empty(65 << 20, dtype=torch.uint8, device="cuda"), torch.OutOfMemoryError, "device_limit")
""",
        MEMPOOL_CONF="limit:64MiB",
    )
    run_on_device(
        PRELUDE
        + STOCK
        + """
refused(lambda: torch.zeros(10).cuda(), RuntimeError, "MEMPOOL_CONF", "Did you mean 'limit'")
""",
        MEMPOOL_CONF="limt:64MiB",
    )


def test_the_memory_fraction_of_the_stock_allocator_reads_the_options(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + STOCK
        + """
library = ctypes.CDLL(path)
library.mempool_memory_fraction.argtypes = [ctypes.c_double, ctypes.c_int]
torch.cuda.init()
library.mempool_memory_fraction(0.5, 0)
total = torch.cuda.get_device_properties(0).total_memory
assert mempool.get_limit("cuda") == total // 2
torch.zeros(10).cuda()
# The option that only the environment could have set.
from mempool._core import cuda_device
assert cuda_device(0, "").history_events == 77
""",
        MEMPOOL_CONF="history_events:77",
    )


@pytest.mark.gpus(2)
def test_the_doctor_finds_both_devices_well(run_on_device: Run) -> None:
    printed = run_on_device(
        """
from mempool.doctor import examine
result = examine()
assert result["facts"]["cuda_problem"] is None and len(result["facts"]["cuda_devices"]) == 2
assert {check["device"] for check in result["checks"]} == {"cpu", "cuda:0", "cuda:1", "pinned"}
print([check for check in result["checks"] if not check["passed"]])
"""
    )
    assert printed.strip() == "[]"
