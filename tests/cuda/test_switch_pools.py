"""Private pools across switches: each stays with the allocator that made it, and so do the graphs in it."""

from __future__ import annotations

from collections.abc import Callable

from switch_script import PRELUDE

Run = Callable[..., str]

GRAPHS = """
source, target = torch.zeros(MIB, device="cuda"), torch.zeros(MIB, device="cuda")

def captured(**options):
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, **options):
        scratch = torch.empty(MIB, device="cuda")
        scratch.copy_(source)
        target.copy_(scratch)
    return graph

def works(graph, value):
    source.copy_(torch.full((MIB,), float(value)))
    noise = [filled(4 * MIB, 9) for _ in range(6)]  # must not be where the graph writes
    graph.replay()
    torch.cuda.synchronize()
    assert bool((target.cpu() == value).all())
    assert all(holds(each, 9) for each in noise)

def pools():
    return {tuple(s["segment_pool_id"]) for s in torch.cuda.memory_snapshot()} - {(0, 0)}
"""


def test_graphs_replay_and_go_after_a_switch(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + GRAPHS
        + """
theirs = captured()
mempool.enable("cuda")
works(theirs, 1)
ours = captured()
assert {theirs.pool(), ours.pool()} == pools()
works(ours, 2)
mempool.disable("cuda")
works(ours, 3)
works(theirs, 4)
del ours
let_go()
assert pools() == {theirs.pool()}
mempool.enable("cuda")
before = outside()
del theirs
let_go()
assert pools() == set() and outside() < before
"""
    )


def test_a_capture_into_the_pool_of_the_other(run_on_device: Run) -> None:
    """All of it comes from who made the pool: nothing is mixed."""
    run_on_device(
        PRELUDE
        + GRAPHS
        + """
theirs = captured()
mempool.enable("cuda")
mine = mempool.memory_allocated("cuda")
more = captured(pool=theirs.pool())
assert pools() == {theirs.pool()} and mempool.memory_allocated("cuda") == mine
works(more, 1)
works(theirs, 2)
ours = captured()
mempool.disable("cuda")
held = mempool.memory_reserved("cuda")
again = captured(pool=ours.pool())
assert pools() == {theirs.pool(), ours.pool()}
works(again, 3)
works(ours, 4)
del ours, again, theirs, more
let_go()
assert pools() == set() and mempool.memory_reserved("cuda") == 0
"""
    )


def test_mem_pools_are_used_on(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
theirs = torch.cuda.MemPool()
with torch.cuda.use_mem_pool(theirs):
    kept = filled(3 * MIB, 1)
mempool.enable("cuda")
ours = torch.cuda.MemPool()
def ids(pool):
    return {b["address"] for s in pool.snapshot() for b in s["blocks"] if b["state"] == "active_allocated"}
for call in (mempool.enable, mempool.disable, mempool.enable):
    call("cuda")
    before = mempool.memory_allocated("cuda")
    with torch.cuda.use_mem_pool(theirs):
        a = filled(5 * MIB, 2)
        with torch.cuda.use_mem_pool(ours):  # the innermost counts
            b = filled(7 * MIB, 3)
            assert mempool.memory_allocated("cuda") == before + 7 * MIB
        c = filled(2 * MIB, 4)
    with torch.cuda.use_mem_pool(ours):
        with torch.cuda.use_mem_pool(theirs):
            d = filled(2 * MIB, 5)
    assert mempool.memory_allocated("cuda") == before + 7 * MIB
    assert ids(theirs) == {t.data_ptr() for t in (kept, a, c, d)} and ids(ours) == {b.data_ptr()}
    side = torch.cuda.Stream()
    for tensor in (a, b, c, d):
        tensor.record_stream(side)
    assert all(holds(t, v) for t, v in ((kept, 1), (a, 2), (b, 3), (c, 4), (d, 5)))
    assert theirs.use_count() == ours.use_count() == 1
    del a, b, c, d, tensor
    torch.cuda.synchronize()
del kept
mempool.disable("cuda")
del ours
mempool.enable("cuda")
del theirs
let_go()
assert outside() == mempool.memory_reserved("cuda") == 0
"""
    )


def test_states_are_restored_by_who_made_them(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
def outputs():
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        kept = torch.empty(MIB, device="cuda")
        kept.zero_()
    return graph, kept

def restored(graph, kept):
    state = torch._C._cuda_getCheckpointState(0, graph.pool())
    assert torch._C._cuda_checkPoolLiveAllocations(0, graph.pool(), {kept.data_ptr()})
    fresh = torch._C._construct_storage_from_data_pointer(kept.data_ptr(), torch.device("cuda:0"), kept.nbytes)
    torch._C._cuda_setCheckpointPoolState(0, state, [kept.untyped_storage()._cdata], [fresh._cdata])
    assert torch._C._cuda_checkPoolLiveAllocations(0, graph.pool(), {kept.data_ptr()})
    return fresh

theirs, kept = outputs()
mempool.enable("cuda")
ours, mine = outputs()
# What torch does with a checkpoint is not for blocks of the other: refused before anything changes.
refused(lambda: restored(theirs, kept), RuntimeError, "checkpoint while mempool serves", "mempool.disable")
assert torch._C._cuda_checkPoolLiveAllocations(0, theirs.pool(), {kept.data_ptr()})
fresh = restored(ours, mine)
mempool.disable("cuda")
refused(lambda: restored(ours, mine), RuntimeError, "checkpoint while native serves", "mempool.enable")
again = restored(theirs, kept)
del fresh, again, kept, mine
for graph in (theirs, ours):
    assert torch._C._cuda_checkPoolLiveAllocations(0, graph.pool(), set())
"""
    )


def test_no_switch_within_a_capture(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
torch.zeros(10, device="cuda")
words = ("being captured", "when it has ended")

def within(call, stream=None, **options):
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local", **options):
        call()
    return graph

def elsewhere(call):
    # From a thread whose own streams are not the captured ones.
    raised = []
    def run():
        try:
            call()
        except BaseException as error:
            raised.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]

enable, disable = lambda: mempool.enable("cuda"), lambda: mempool.disable("cuda")
for stream in (None, torch.cuda.Stream(priority=-1)):
    within(lambda: refused(enable, mempool.PoolStateError, *words), stream)
    within(lambda: refused(lambda: elsewhere(enable), mempool.PoolStateError, *words), stream)
    assert not mempool.is_enabled("cuda") and torch.cuda.get_allocator_backend() == "native"
both = []
within(lambda: both.append(mempool.enable()))
assert both[0]["cpu"] is True and "being captured" in both[0]["cuda"]
mempool.enable("cuda")
within(lambda: refused(disable, mempool.PoolStateError, *words))
within(lambda: refused(lambda: elsewhere(disable), mempool.PoolStateError, *words))
assert mempool.is_enabled("cuda")
mempool.disable("cuda")
within(lambda: refused(lambda: elsewhere(enable), mempool.PoolStateError, *words))
mempool.enable("cuda")
assert mempool.is_enabled("cuda")
"""
    )


def test_within_use_mem_pool(run_on_device: Run) -> None:
    """The first switch cannot know whose the thread's blocks are; later ones do."""
    run_on_device(
        PRELUDE
        + """
pool = torch.cuda.MemPool()
with torch.cuda.use_mem_pool(pool):
    refused(lambda: mempool.enable("cuda"), mempool.PoolStateError, "use_mem_pool", "outside of it")
assert not mempool.is_enabled("cuda")
mempool.enable("cuda")
mempool.disable("cuda")
with torch.cuda.use_mem_pool(pool):
    mempool.enable("cuda")
    before = mempool.memory_allocated("cuda")
    kept = filled(MIB, 1)
    assert mempool.memory_allocated("cuda") == before
after = filled(MIB, 2)
assert mempool.memory_allocated("cuda") == before + MIB and holds(kept, 1)
"""
    )


def test_blocks_of_either_are_freed_during_a_capture(run_on_device: Run) -> None:
    """With the captured stream among those that use them: no event of theirs may become a part of the graph."""
    run_on_device(
        PRELUDE
        + GRAPHS
        + """
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
    sys.exit()  # torch tells its allocators only from then on that a capture begins
for call in (mempool.enable, mempool.disable):
    mempool.disable("cuda")
    theirs = filled(3 * MIB, 1)
    mempool.enable("cuda")
    ours = filled(3 * MIB, 2)
    call("cuda")
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for tensor in (theirs, ours):
            tensor.record_stream(torch.cuda.current_stream())
        del theirs, ours, tensor
        scratch = torch.empty(MIB, device="cuda")
        scratch.copy_(source)
        target.copy_(scratch)
    works(graph, 1)
    for again in (mempool.enable, mempool.disable):
        again("cuda")
        kept = [filled(3 * MIB, 5) for _ in range(4)]
        assert all(holds(t, 5) for t in kept)
    del graph, kept
    let_go()
assert mempool.memory_reserved("cuda") == 0
"""
    )


def test_an_allocator_that_tells_no_uses_keeps_its_pool(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + GRAPHS
        + """
import warnings
warnings.simplefilter("ignore")  # of the setting that names the backend
theirs = captured()
mempool.enable("cuda")
mine = mempool.memory_allocated("cuda")
more = captured(pool=theirs.pool())
assert mempool.memory_allocated("cuda") == mine and mempool.memory_reserved("cuda") == 0
del theirs
let_go()
again = captured(pool=more.pool())
assert mempool.memory_allocated("cuda") == mine and mempool.memory_reserved("cuda") == 0
""",
        PYTORCH_ALLOC_CONF="backend:cudaMallocAsync",
    )
