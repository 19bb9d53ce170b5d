"""enable("cuda") and disable("cuda") while CUDA is in use: whose each block is, and stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from switch_script import PRELUDE, STANDIN

Run = Callable[..., str]

pytestmark = pytest.mark.usefixtures("controls")

BACKENDS = ("native", "expandable", "cudaMallocAsync")
SETTINGS = {
    "native": {},
    "expandable": {"PYTORCH_ALLOC_CONF": "expandable_segments:True"},
    "cudaMallocAsync": {"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"},
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_outlive_both_switches(run_on_device: Run, backend: str) -> None:
    run_on_device(
        PRELUDE
        + """
import warnings
warnings.simplefilter("ignore")  # of the settings that name the backend
theirs = [filled(n, 1) for n in (100, 70_000, 5 * MIB)]
name = torch.cuda.get_allocator_backend()
torch.cuda.empty_cache()
told = torch.cuda.memory_reserved()
assert mempool.enable("cuda") == {"cuda": True} and mempool.is_enabled("cuda")
assert torch.cuda.get_allocator_backend() == "mempool"
ours = [filled(n, 2) for n in (100, 70_000, 5 * MIB)]
assert torch.cuda.memory_allocated() == mempool.memory_allocated("cuda") >= 5 * MIB
held = outside()
assert held == told, (held, told)  # cudaMallocAsync's is the driver's: the stand-in has no figure for it
assert all(holds(t, 1) for t in theirs) and all(holds(t, 2) for t in ours)
theirs.pop()
torch.cuda.synchronize()
torch.cuda.empty_cache()
assert outside() < held or held == 0, (outside(), held)
mempool.disable("cuda")
assert not mempool.is_enabled("cuda") and torch.cuda.get_allocator_backend() == name
mine = mempool.memory_allocated("cuda")
theirs.append(filled(3 * MIB, 3))
assert mempool.memory_allocated("cuda") == mine, "a new block is not mempool's"
assert torch.cuda.memory_allocated() >= min(told, 3 * MIB)
assert all(holds(t, 2) for t in ours) and holds(theirs[-1], 3) and holds(theirs[0], 1)
assert mempool.memory_reserved("cuda") >= 5 * MIB
ours.clear()
assert mempool.memory_allocated("cuda") == 0
del theirs[0]
mempool.enable("cuda")
assert holds(theirs[-1], 3)
theirs.clear()
let_go()
assert outside() == mempool.memory_reserved("cuda") == 0, (outside(), mempool.memory_reserved("cuda"))
check_device()
""",
        **SETTINGS[backend],
    )


def test_what_was_never_used_serves_after_disable(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
mempool.enable("cuda")
ours = filled(2 * MIB, 1)
torch.cuda.memory._record_memory_history()
mempool.disable("cuda")
assert torch.cuda.get_allocator_backend() == "native"
theirs = filled(2 * MIB, 2)
assert torch.cuda.memory_allocated() == 2 * MIB == mempool.memory_allocated("cuda")
traces = torch.cuda.memory._snapshot()["device_traces"][0]
assert any(entry["action"] == "alloc" and entry["addr"] == theirs.data_ptr() for entry in traces)
assert holds(ours, 1) and holds(theirs, 2)
theirs.record_stream(torch.cuda.Stream())
del ours, theirs
let_go()
assert torch.cuda.memory_reserved() == mempool.memory_reserved("cuda") == 0
"""
    )


def test_before_anything_uses_cuda(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
for _ in range(3):
    mempool.enable("cuda")
    mempool.disable("cuda")
assert not torch.cuda.is_initialized()
assert torch.cuda.get_allocator_backend() == "native"
theirs = filled(MIB, 1)
mempool.enable("cuda")
ours = filled(MIB, 2)
assert holds(theirs, 1) and holds(ours, 2)
assert outside() >= MIB == mempool.memory_allocated("cuda")
"""
    )


def test_calls_by_address_reach_whose_it_is(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
raw = torch.cuda.caching_allocator_alloc(5000)
theirs = filled(100, 1)
mempool.enable("cuda")
later = torch.cuda.caching_allocator_alloc(5000)
ours = filled(100, 2)
for enabled in (True, False):
    (mempool.enable if enabled else mempool.disable)("cuda")
    segments = torch.cuda.memory_snapshot()
    live = {b["address"] for s in segments for b in s["blocks"] if b["state"] == "active_allocated"}
    assert {raw, later, theirs.data_ptr(), ours.data_ptr()} <= live
    assert len(segments) == len({s["address"] for s in segments})
torch.cuda.caching_allocator_delete(later)  # mempool's, while it is disabled
mempool.enable("cuda")
torch.cuda.caching_allocator_delete(raw)  # torch's, while mempool is enabled
refused(lambda: torch.cuda.caching_allocator_delete(raw), RuntimeError, "invalid device pointer")
del theirs, ours
let_go()
assert mempool.memory_allocated("cuda") == outside() == 0
"""
    )


@pytest.mark.stand_in
@pytest.mark.parametrize("serves", ["mempool", "torch"])
@pytest.mark.parametrize("made_by", ["mempool", "torch"])
def test_record_stream_holds_either_block_in_either_state(run_on_device: Run, serves: str, made_by: str) -> None:
    """The block is not handed out again before the other stream has done with it."""
    run_on_device(
        PRELUDE
        + STANDIN
        + f"""
serves, made_by = {serves!r}, {made_by!r}
"""
        + """
torch.zeros(1, device="cuda")
turn = {"mempool": mempool.enable, "torch": mempool.disable}
mempool.enable("cuda")
turn[made_by]("cuda")
side = torch.cuda.Stream()
kept = block(4 * MIB)
address = kept.data_ptr()
turn[serves]("cuda")
with standin.held(side):
    standin.write_later(side, address, 4 * MIB, seed=1)
    standin.check_later(side, address, 4 * MIB, seed=1)
    kept.record_stream(side)
    del kept
    turn[made_by]("cuda")
    others = [block(4 * MIB) for _ in range(3)]
    assert address not in [each.data_ptr() for each in others]
    for each in others:
        each.zero_()
torch.cuda.synchronize()
assert standin.violations() == 0
"""
    )


def test_threads_allocate_while_it_switches(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
sys.setswitchinterval(1e-5)
torch.zeros(1, device="cuda")
stop, failures = threading.Event(), []

def work(seed):
    choose, kept = random.Random(seed), []
    stream, other = torch.cuda.Stream(), torch.cuda.Stream()
    try:
        with torch.cuda.stream(stream):
            while not stop.is_set():
                value = choose.randrange(256)
                tensor = filled(choose.choice((64, 3000, 200_000, 3 * MIB)), value)
                if choose.random() < 0.3:
                    tensor.record_stream(other)
                kept.append((tensor, value))
                if len(kept) > 8:
                    tensor, value = kept.pop(choose.randrange(len(kept)))
                    assert holds(tensor, value)
                    del tensor
    except BaseException as error:
        failures.append(error)

threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
for thread in threads:
    thread.start()
for _ in range(150):
    mempool.enable("cuda")
    mempool.disable("cuda")
stop.set()
for thread in threads:
    thread.join()
assert not failures, failures
let_go()
assert torch.cuda.memory_allocated() == 512 or torch.cuda.memory_allocated() == 0
assert mempool.memory_reserved("cuda") == 0
check_device()
"""
    )


@pytest.mark.gpus(2)
def test_several_devices(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
theirs = [filled(3 * MIB, i, f"cuda:{i}") for i in range(2)]
assert holds(theirs[0].to("cuda:1"), 0)  # torch lets the devices in to each other, once
mempool.enable("cuda")
ours = [filled(3 * MIB, 5 + i, f"cuda:{i}") for i in range(2)]
assert all(outside(f"cuda:{i}") >= 3 * MIB for i in range(2))
for to in range(2):
    assert holds(ours[1 - to].to(f"cuda:{to}"), 6 - to)
    assert holds(theirs[1 - to].to(f"cuda:{to}"), 1 - to)
mempool.disable("cuda")
for to in range(2):
    assert holds(ours[1 - to].to(f"cuda:{to}"), 6 - to)
del ours
assert [mempool.memory_allocated(f"cuda:{i}") for i in range(2)] == [0, 0]
"""
    )


def test_a_forked_child(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
theirs = filled(1000, 1)
mempool.enable("cuda")
ours = filled(1000, 2)
for enabled in (True, False):
    (mempool.enable if enabled else mempool.disable)("cuda")
    child = os.fork()
    if child == 0:
        try:
            refused(lambda: torch.zeros(10, device="cuda"), RuntimeError, "fork")
            if enabled:
                refused(lambda: torch.cuda.caching_allocator_alloc(100), RuntimeError, "fork")
            del theirs, ours  # frees that must touch nothing
            assert torch.ones(10).sum() == 10
        except BaseException:
            import traceback; traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
assert holds(theirs, 1) and holds(ours, 2)
"""
    )


def test_sharing_says_whose_handle_it_is(run_on_device: Run) -> None:
    """The memory of mempool is shared in either state; torch's own is shared, or refused, as torch does it."""
    run_on_device(
        PRELUDE
        + """
theirs = filled(3 * MIB, 1)
def shared(tensor):
    try:
        return bytes(tensor.untyped_storage()._share_cuda_()[1])
    except RuntimeError as error:
        return str(error).splitlines()[0]
before = shared(theirs)
mempool.enable("cuda")
ours = filled(3 * MIB, 2)
assert shared(theirs) == before
for call in (mempool.enable, mempool.disable):
    call("cuda")
    assert shared(ours).startswith(b"mempool1")
"""
    )


def test_history_that_cannot_be_taken_over_is_named(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
import warnings
torch.cuda.memory._record_memory_history()
theirs = filled(MIB, 1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    mempool.enable("cuda")
assert len(caught) == 1 and "_record_memory_history" in str(caught[0].message), caught
torch.cuda.memory._record_memory_history()
ours = filled(MIB, 2)
mempool.disable("cuda")
again = filled(MIB, 3)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    mempool.enable("cuda")
entries = torch.cuda.memory._snapshot()["device_traces"][0]
made = [(entry["addr"], entry["size"]) for entry in entries if entry["action"] == "alloc"]
wanted = [(tensor.data_ptr(), MIB) for tensor in (theirs, ours, again)]
assert [each for each in made if each in wanted] == wanted
times = [entry["time_us"] for entry in entries]
assert times == sorted(times)
entries = torch.cuda.memory._snapshot()["device_traces"][0]
assert [entry["action"] for entry in entries].count("snapshot") == 1  # of the one before
"""
    )


def test_limits_and_switches_of_torchs_are_taken_over(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
torch.cuda.set_per_process_memory_fraction(0.25)
mempool.enable("cuda")
total = torch.cuda.get_device_properties(0).total_memory
assert mempool.get_limit("cuda") == total // 4
mempool.disable("cuda")
torch.cuda.set_per_process_memory_fraction(0.125)
mempool.enable("cuda")
assert mempool.get_limit("cuda") == total // 8
"""
    )


def test_threads_switch_while_a_warning_lets_others_run(run_on_device: Run) -> None:
    """Whoever waits for another thread's switch holds nothing that this one needs."""
    run_on_device(
        PRELUDE
        + """
import time, warnings
def slowly(*args, **kwargs):
    time.sleep(0.01)
warnings.showwarning = slowly
warnings.simplefilter("always")
torch.zeros(1, device="cuda")

def work(seed):
    for _ in range(10):
        mempool.disable("cuda")
        torch.cuda.memory._set_allocator_settings(f"max_split_size_mb:{100 + seed}")
        mempool.enable("cuda")

threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert mempool.is_enabled("cuda")
"""
    )


def test_another_allocator_that_takes_the_place_is_not_dropped(
    run_on_device: Run, compiled: Callable[[str], Path]
) -> None:
    run_on_device(
        PRELUDE
        + f"""
mempool.enable("cuda")
other = torch.cuda.memory.CUDAPluggableAllocator({str(compiled("source.cpp"))!r}, "source_malloc", "source_free")
torch.cuda.memory.change_current_allocator(other)
assert not mempool.is_enabled("cuda")
kept = block(100)
refused(lambda: mempool.enable("cuda"), mempool.PoolStateError, "another allocator", "before mempool")
mempool.disable("cuda")
assert torch.cuda.get_allocator_backend() == "pluggable"
assert mempool.memory_allocated("cuda") == 0
"""
    )
