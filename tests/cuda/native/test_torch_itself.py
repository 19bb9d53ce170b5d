"""torch's own allocator works on this device: tests compare mempool's with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import control
import pytest
import torch

MIB = 1 << 20


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Every test starts and ends with nothing held."""
    torch.cuda.empty_cache()
    yield
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def test_copies_carry_data() -> None:
    there = torch.arange(1000.0).cuda()
    elsewhere = torch.empty(1000, device="cuda")
    elsewhere.copy_(there)
    assert torch.equal(elsewhere.cpu(), torch.arange(1000.0))
    assert torch.equal(torch.zeros(100, dtype=torch.uint8, device="cuda").cpu(), torch.zeros(100, dtype=torch.uint8))


def test_out_of_memory_says_what_there_is(standin: control.Standin) -> None:
    standin.set_capacity(100 * MIB + standin.used())
    blocks = [torch.empty(30 * MIB, dtype=torch.uint8, device="cuda") for _ in range(3)]
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 30.00 MiB"):
        torch.empty(30 * MIB, dtype=torch.uint8, device="cuda")
    assert standin.count("cudaMalloc") == 5  # a second try after what is cached went back
    del blocks


def test_a_block_of_another_stream_waits_for_it(standin: control.Standin) -> None:
    side = torch.cuda.Stream()
    block = torch.empty(4 * MIB, dtype=torch.uint8, device="cuda")
    address = block.data_ptr()
    with standin.held(side):
        standin.write_later(side, address, 4 * MIB, seed=1)
        standin.check_later(side, address, 4 * MIB, seed=1)
        block.record_stream(side)
        del block
        other = torch.empty(4 * MIB, dtype=torch.uint8, device="cuda")
        assert other.data_ptr() != address
    again = torch.empty(4 * MIB, dtype=torch.uint8, device="cuda")
    assert again.data_ptr() == address
    assert standin.violations() == 0


def test_a_graph_replays_its_copies() -> None:
    source, target = torch.zeros(MIB, device="cuda"), torch.zeros(MIB, device="cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        target.copy_(source)
    source.copy_(torch.full((MIB,), 5.0))
    graph.replay()
    assert bool((target.cpu() == 5).all())


def test_a_training_step_takes_the_same_memory_each_time() -> None:
    model = torch.nn.TransformerEncoderLayer(256, 4, batch_first=True).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    peaks = []
    for _ in range(4):
        torch.cuda.reset_peak_memory_stats()
        model(torch.empty(4, 32, 256, device="cuda")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] == peaks[2] == peaks[3] > 0
    time.sleep(0.05)  # autograd's threads


def test_expandable_segments_map_handles(run_on_device: Callable[..., str]) -> None:
    """In a process of its own, as the setting is read once."""
    script = (
        "import torch\n"
        "a = torch.zeros(30 << 20, dtype=torch.uint8, device='cuda')\n"
        "b = torch.zeros(50 << 20, dtype=torch.uint8, device='cuda')\n"
        "assert int(b.cpu().sum()) == 0\n"
        "assert torch.cuda.memory_snapshot()[0]['is_expandable']\n"
        "del a, b\n"
        "torch.cuda.empty_cache()\n"
        "assert torch.cuda.memory_reserved() == 0\n"
    )
    run_on_device(script, PYTORCH_ALLOC_CONF="expandable_segments:True")
