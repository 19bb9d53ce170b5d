"""Pinned blocks of captured graphs: they stay for the replays, and each graph's pool with its allocator."""

from __future__ import annotations

from collections.abc import Callable

import control
import pytest
import torch
from switch_script import PRELUDE

import mempool

Run = Callable[..., str]


def test_a_graph_keeps_the_blocks_that_it_copies_from(pinned: None) -> None:
    there = torch.zeros(2, 5000, dtype=torch.uint8, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for row, value in ((0, 7), (1, 8)):
            source = torch.full((5000,), value, dtype=torch.uint8).pin_memory()
            there[row].copy_(source, non_blocking=True)
            del source
    others = [torch.full((5000,), 9, dtype=torch.uint8).pin_memory() for _ in range(100)]
    graph.replay()
    torch.cuda.synchronize()
    assert [int(row.max()) for row in there.cpu()] == [7, 8]
    del others
    mempool.trim("pinned")
    graph.replay()
    torch.cuda.synchronize()
    assert [int(row.max()) for row in there.cpu()] == [7, 8]
    del graph


def test_a_block_of_a_graph_outlives_it(pinned: None) -> None:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = torch.full((5000,), 3, dtype=torch.uint8).pin_memory()
        kept.to("cuda", non_blocking=True)
    del graph
    mempool.trim("pinned")
    others = [torch.full((5000,), 9, dtype=torch.uint8).pin_memory() for _ in range(100)]
    assert int(kept.max()) == 3
    assert len(others) == 100


def test_a_graph_that_began_with_torchs_allocator_ends_with_it(pinned: None) -> None:
    mempool.disable("pinned")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.zeros(100, device="cuda").add_(1)
        mempool.enable("pinned")
    graph.replay()
    del graph
    torch.cuda.synchronize()


def test_a_block_from_before_the_capture_stays_for_the_replays(pinned: None) -> None:
    there = torch.zeros(5000, dtype=torch.uint8, device="cuda")
    source = torch.full((5000,), 7, dtype=torch.uint8).pin_memory()
    graphs = [torch.cuda.CUDAGraph() for _ in range(2)]
    for graph in graphs:
        with torch.cuda.graph(graph):
            there.copy_(source, non_blocking=True)
    del source
    for graph in reversed(graphs):
        others = [torch.full((5000,), 9, dtype=torch.uint8).pin_memory() for _ in range(100)]
        graph.replay()
        torch.cuda.synchronize()
        assert int(there.cpu().max()) == 7
        del others, graph
        graphs.pop()
    assert mempool.memory_allocated("pinned") == 0


def test_a_pool_stays_with_the_allocator_that_it_began_with(pinned: None) -> None:
    def captured(row: int, **options: object) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, **options):
            there[row].copy_(torch.full((5000,), row + 1, dtype=torch.uint8).pin_memory(), non_blocking=True)
        return graph

    def writes(graph: torch.cuda.CUDAGraph, row: int) -> bool:
        there.zero_()
        others = [torch.full((5000,), 99, dtype=torch.uint8).pin_memory() for _ in range(100)]
        graph.replay()
        torch.cuda.synchronize()
        return len(others) == 100 and bool((there[row].cpu() == row + 1).all())

    there = torch.zeros(4, 5000, dtype=torch.uint8, device="cuda")
    for first, then in ((mempool.disable, mempool.enable), (mempool.enable, mempool.disable)):
        first("pinned")
        one = captured(0)
        used = mempool.memory_allocated("pinned")
        then("pinned")
        two = captured(1, pool=one.pool())
        is_ours = first is mempool.enable
        assert (mempool.memory_allocated("pinned") > used) == is_ours
        assert writes(one, 0)
        del one
        assert writes(two, 1)
        first("pinned")
        three = captured(2, pool=two.pool())
        del two
        then("pinned")
        assert writes(three, 2)
        del three
        mempool.enable("pinned")
        torch.cuda.synchronize()
        assert mempool.memory_allocated("pinned") == 0


def test_the_first_enable_waits_for_the_end_of_a_capture(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    kept = torch.empty(1000, pin_memory=True)
    refused(lambda: mempool.enable("pinned", limit="1GiB"), mempool.PoolStateError, "captured", 'enable("pinned")')
assert not mempool.is_enabled("pinned") and mempool.get_limit("pinned") is None
mempool.enable("pinned")
more = torch.cuda.CUDAGraph()
with torch.cuda.graph(more, pool=graph.pool()):
    torch.empty(1000, pin_memory=True)
assert mempool.memory_allocated("pinned") == 0  # the pool is from before
del kept, graph, more
let_go()
with torch.cuda.graph(torch.cuda.CUDAGraph()):
    again = torch.empty(1000, pin_memory=True)
    assert mempool.memory_allocated("pinned") > 0
"""
    )


def test_a_graph_from_before_does_not_end_the_blocks_of_a_later_one(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
there = torch.zeros(5000, dtype=torch.uint8, device="cuda")
first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
with torch.cuda.graph(first):
    there.add_(0)
mempool.enable("pinned")
source = torch.full((5000,), 7, dtype=torch.uint8).pin_memory()
with torch.cuda.graph(second, pool=first.pool()):
    there.copy_(source, non_blocking=True)
del source, first
others = [torch.full((5000,), 9, dtype=torch.uint8).pin_memory() for _ in range(100)]
second.replay()
assert holds(there, 7)
"""
    )


@pytest.mark.parametrize("before", [True, False])
def test_blocks_stay_while_the_last_replay_runs(pinned: None, standin: control.Standin, before: bool) -> None:
    there = torch.zeros(5000, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    source = torch.full((5000,), 7, dtype=torch.uint8).pin_memory() if before else None
    with torch.cuda.graph(graph):
        if source is None:
            source = torch.full((5000,), 7, dtype=torch.uint8).pin_memory()
        there.copy_(source, non_blocking=True)
    del source
    with standin.held(stream):
        with torch.cuda.stream(stream):
            graph.replay()
        del graph
        others = [torch.full((5000,), 9, dtype=torch.uint8).pin_memory() for _ in range(100)]
    torch.cuda.synchronize()
    assert len(others) == 100
    assert int(there.cpu().max()) == 7
