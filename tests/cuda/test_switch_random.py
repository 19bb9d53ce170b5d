"""A thousand switches with live tensors, graphs and three streams: nothing is lost, and nothing is written over."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from switch_script import PRELUDE

Run = Callable[..., str]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_switches(run_on_device: Run, seed: int) -> None:
    run_on_device(
        PRELUDE
        + f"choose = random.Random({seed})"
        + """
theirs = filled(100, 0)
streams = [torch.cuda.Stream() for _ in range(3)]
live, graphs = [], []  # (tensor, value, whether mempool made it); (graph, source, target)
torch.cuda.reset_accumulated_memory_stats()
enabled, switches = False, 0
let_go()
first = torch.cuda.memory_allocated()

def rounded(made_here):
    return sum((t.numel() + 511) // 512 * 512 for t, _, here in live if here == made_here)

def capture():
    source, target = filled(5000, 0), filled(5000, 0)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        scratch = torch.empty_like(source)
        scratch.copy_(source)
        target.copy_(scratch)
    graphs.append((graph, source, target))

def replay(entry):
    graph, source, target = entry
    value = choose.randrange(256)
    source.copy_(torch.full((5000,), value, dtype=torch.uint8))
    torch.cuda.synchronize()
    graph.replay()
    torch.cuda.synchronize()
    assert holds(target, value)

while switches < 1000:
    for _ in range(choose.randrange(4)):
        action = choose.random()
        with torch.cuda.stream(choose.choice(streams)):
            if action < 0.5 and len(live) < 30:
                value, size = choose.randrange(256), choose.choice((1, 600, 9_000, 200_000, 3 * MIB))
                tensor = filled(size, value)
                live.append((tensor, value, enabled))
                torch.cuda.current_stream().synchronize()
            elif action < 0.9 and live:
                tensor, value, _ = live.pop(choose.randrange(len(live)))
                assert holds(tensor, value)
                if choose.random() < 0.5:
                    tensor.record_stream(choose.choice(streams))
                del tensor
    action = choose.random()
    if action < 0.01 and len(graphs) < 4:
        capture()
    elif action < 0.03 and graphs:
        replay(choose.choice(graphs))
    elif action < 0.035 and graphs:
        graphs.pop(choose.randrange(len(graphs)))
    elif action < 0.05:
        torch.cuda.empty_cache()
    enabled = not enabled
    (mempool.enable if enabled else mempool.disable)("cuda")
    switches += 1
    if switches % 100 == 0:
        for tensor, value, _ in live:
            assert holds(tensor, value)
        check_device()
        backend = "mempool" if enabled else "native"
        assert torch.cuda.get_allocator_backend() == backend

for entry in graphs:
    replay(entry)
graphs.clear()
entry = None
let_go()
# Each one's figures are its own.
sizes = {here: sum(t.numel() for t, _, made in live if made == here) for here in (False, True)}
assert mempool.memory_stats("cuda")["requested_bytes.all.current"] == sizes[True]
mempool.disable("cuda")
assert torch.cuda.memory_stats()["requested_bytes.all.current"] == sizes[False] + 100, sizes
for tensor, value, _ in live:
    assert holds(tensor, value)
live.clear()
tensor = None
let_go()
assert torch.cuda.memory_allocated() == first
assert mempool.memory_allocated("cuda") == mempool.memory_reserved("cuda") == 0
del theirs
let_go()
assert torch.cuda.memory_reserved() == 0
check_device()
"""
    )
