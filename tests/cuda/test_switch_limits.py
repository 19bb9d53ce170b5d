"""What torch's own allocator holds counts in mempool's limit, as it is now."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from switch_script import PRELUDE, STANDIN

Run = Callable[..., str]


def test_the_limit_counts_what_torch_holds(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
theirs = [filled(20 * MIB, i) for i in range(3)]
cached = filled(40 * MIB, 9)
del cached
refused(lambda: mempool.enable("cuda", limit="50MiB"), mempool.ConfigError, "torch's own allocator", "Nothing was")
assert not mempool.is_enabled("cuda")
mempool.enable("cuda", limit="100MiB")
assert outside() == 60 * MIB  # its cache is gone
refused(lambda: mempool.set_limit("59MiB", "cuda"), mempool.ConfigError, "torch's other allocator")
try:
    block(50 * MIB)
except mempool.OutOfMemoryError as error:
    info = mempool.oom_info(error)
    assert info["reason"] == "device_limit" and info["outside"] == 60 * MIB, info
    assert info["held"] == 0 and "torch's other allocator 60.00 MiB" in str(error), str(error)
else:
    raise AssertionError("the limit was passed")
theirs.pop()  # by its own deleter, which mempool does not see
ours = block(50 * MIB)
assert outside() == 40 * MIB
refused(lambda: block(20 * MIB), mempool.OutOfMemoryError, "device_limit")
mempool.set_limit("90MiB", "cuda")
theirs.clear()
more = block(40 * MIB)
assert outside() == 0
"""
    )


def test_what_goes_to_torchs_pools_meanwhile_counts(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
pool = torch.cuda.MemPool()
with torch.cuda.use_mem_pool(pool):
    kept = block(10 * MIB)
mempool.enable("cuda", limit="100MiB")
with torch.cuda.use_mem_pool(pool):
    more = block(60 * MIB)
refused(lambda: block(40 * MIB), mempool.OutOfMemoryError, "device_limit")
ours = block(28 * MIB)
mempool.disable("cuda")
again = block(60 * MIB)
mempool.enable("cuda")
del ours
let_go()
refused(lambda: block(2 * MIB), mempool.OutOfMemoryError, "device_limit")
refused(lambda: mempool.set_limit("120MiB", "cuda"), mempool.ConfigError, "torch's other allocator")
del more, kept, again, pool
let_go()
assert outside() == 0
block(90 * MIB)
"""
    )


@pytest.mark.stand_in
@pytest.mark.usefixtures("controls")
def test_a_full_device_gets_torchs_cache(run_on_device: Run) -> None:
    """What torch's own allocator has cached since serves mempool before it refuses."""
    run_on_device(
        PRELUDE
        + STANDIN
        + """
theirs = block(60 * MIB)
mempool.enable("cuda")
standin.set_capacity(100 * MIB + standin.used())
del theirs
ours = block(150 * MIB)
assert outside() == 0
"""
    )


def test_many_processes_count_it_in_their_limit(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
theirs = filled(60 * MIB, 1)
mempool.enable("cuda", limit="100MiB", shared=True)
report = mempool.shared_report("cuda")
assert outside() == 60 * MIB
refused(lambda: block(50 * MIB), mempool.OutOfMemoryError, "limit")
ours = block(30 * MIB)
del theirs
more = block(60 * MIB)
"""
    )


def test_the_lower_of_the_limit_and_torchs_fraction_holds(run_on_device: Run) -> None:
    for first in ("", "mempool.memory_stats('cuda')", "block(100)"):
        run_on_device(
            PRELUDE
            + f"""
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction(0.25)
{first}
mempool.enable("cuda", limit=total // 2)
assert mempool.get_limit("cuda") == total // 4
mempool.disable("cuda")
mempool.enable("cuda", limit=total // 8)
assert mempool.get_limit("cuda") == total // 8
"""
        )


def test_an_enable_that_is_refused_sets_no_limit(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
block(100)
mempool.memory_stats("cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    block(100)
    refused(lambda: mempool.enable("cuda", limit="64MiB", soft_limit="32MiB"), mempool.PoolStateError, "captured")
assert not mempool.is_enabled("cuda")
assert mempool.get_limit("cuda") is mempool.get_limit("cuda", soft=True) is None
mempool.enable("cuda")
assert mempool.get_limit("cuda") is None
mempool.disable("cuda")
refused(lambda: mempool.enable("cuda", limit="64MiB", reserve="100MiB"), mempool.OutOfMemoryError, "100")
assert not mempool.is_enabled("cuda") and mempool.get_limit("cuda") is None
"""
    )


@pytest.mark.stand_in
@pytest.mark.usefixtures("controls")
def test_what_mempool_keeps_serves_the_earlier_allocator(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + STANDIN
        + """
mempool.enable("cuda")
ours = block(60 * MIB)
mempool.disable("cuda")
standin.set_capacity(100 * MIB + standin.used() - 60 * MIB)
del ours
assert mempool.memory_reserved("cuda") >= 60 * MIB
theirs = block(90 * MIB)
assert mempool.memory_reserved("cuda") == 0
refused(lambda: block(90 * MIB), torch.OutOfMemoryError, "out of memory")
"""
    )


def test_a_first_enable_that_cannot_reserve_leaves_the_next_one_free(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
theirs = block(100)  # mempool makes the device as it takes over
refused(lambda: mempool.enable("cuda", limit="64MiB", reserve="100MiB"), mempool.OutOfMemoryError, "64.00 MiB")
assert not mempool.is_enabled("cuda") and torch.cuda.get_allocator_backend() == "native"
mempool.enable("cuda")
assert mempool.get_limit("cuda") is None
ours = block(80 * MIB)
assert mempool.memory_allocated("cuda") == 80 * MIB
"""
    )
