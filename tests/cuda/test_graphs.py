"""CUDA graphs that are captured and replayed on memory of mempool."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mempool

MIB = 1 << 20


pytestmark = pytest.mark.usefixtures("enabled")


def block(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8, device="cuda")


def test_a_graph_replays_after_memory_was_moved() -> None:
    source, target = torch.zeros(MIB, device="cuda"), torch.zeros(MIB, device="cuda")
    filler = [block(4) for _ in range(12)]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scratch = torch.empty(MIB, device="cuda")
        scratch.copy_(source)
        target.copy_(scratch)
    address = scratch.data_ptr()
    del scratch  # the replay writes there all the same
    del filler[::2]
    report = mempool.defragment("cuda")
    assert report.moved_handles > 0
    torch.cuda.empty_cache()  # what is free in the graph's pool is not the cache's to give
    wide = block(24)
    source.copy_(torch.full((MIB,), 5.0))
    wide.fill_(1)
    graph.replay()
    torch.cuda.synchronize()
    assert bool((target.cpu() == 5).all())
    assert not wide.data_ptr() <= address < wide.data_ptr() + wide.nbytes
    del graph


def test_graphed_callables() -> None:
    layer = torch.nn.Linear(64, 64).cuda()
    sample = torch.randn(8, 64).cuda().requires_grad_()
    graphed: Any = torch.cuda.make_graphed_callables(layer, (sample,))
    assert graphed(torch.randn(8, 64).cuda().requires_grad_()).shape == (8, 64)


def test_an_allocation_during_a_capture_outside_of_its_pool() -> None:
    """On another stream, whose blocks the capture does not want."""
    graph = torch.cuda.CUDAGraph()
    other = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        inside = block(2)
        with torch.cuda.stream(other):
            outside = block(3)
    ids = {tuple(s["segment_pool_id"]) for s in torch.cuda.memory_snapshot()}
    assert graph.pool() in ids
    assert (0, 0) in ids
    assert inside.is_cuda
    assert outside.is_cuda
