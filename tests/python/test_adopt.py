"""``adopt``: tensors that were made before get memory of mempool."""

from __future__ import annotations

import asyncio
import copy

import numpy as np
import pytest
import torch
from torch import nn

import mempool

MIB = 1 << 20


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 64)
        self.head = nn.Linear(64, 1000, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("table", torch.arange(1000.0))
        self.register_buffer("row", self.table[10:20])
        self.register_buffer("empty", torch.empty(0))


def test_a_module_made_elsewhere_moves_and_keeps_its_ties(enabled: None) -> None:
    pool = mempool.MemoryPool("model", limit="2MiB")
    model = Tied()
    with torch.no_grad():
        values = copy.deepcopy(model.state_dict())
    parameter = model.head.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    report = mempool.adopt(model, pool)
    size = 4 * 64 * 1000 + 4 * 1000
    assert (report.tensors, report.moved_bytes, report.kept_elsewhere_bytes) == (4, size, 0)
    assert pool.stats()["requested_bytes.current"] == size
    assert model.head.weight is model.embedding.weight is parameter is optimizer.param_groups[0]["params"][0]
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    model.table[10] = -1
    assert model.row[0] == -1
    addresses = [value.data_ptr() for value in model.state_dict().values()]
    again = mempool.adopt(model, pool)
    assert again == mempool.AdoptReport(tensors=4, moved_bytes=0, kept_elsewhere_bytes=0, already_there_bytes=size)
    assert [value.data_ptr() for value in model.state_dict().values()] == addresses
    assert pool.stats()["allocation.allocated"] == 2  # the empty buffer has no block
    del again, model, parameter, optimizer
    assert pool.used_bytes() == 0


def test_what_else_refers_to_the_memory_keeps_it(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    source = np.arange(1000, dtype=np.float32)
    mapped = torch.from_numpy(source)
    view = mapped[5:10]
    report = mempool.adopt([mapped], pool)
    assert (report.moved_bytes, report.kept_elsewhere_bytes) == (4000, 4000)
    source[5] = -7
    assert (float(view[0]), float(mapped[5])) == (-7.0, 5.0)


def test_a_view_takes_along_what_it_covers(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    whole = torch.arange(1 << 20, dtype=torch.int64)
    views = {"a": whole[1000:1100:3], "b": whole.view(torch.int32)[2050:2060]}
    wanted = {name: view.clone() for name, view in views.items()}
    report = mempool.adopt(views, pool)
    assert report.moved_bytes < 1000
    assert all(torch.equal(view, wanted[name]) for name, view in views.items())
    assert views["a"].stride() == (3,)
    views["b"][0] = 7  # still one memory: element 1025 of the first
    assert int(views["b"][0]) == 7


def _resized() -> torch.Tensor:
    tensor = torch.ones(100)
    tensor.untyped_storage().resize_(0)
    return tensor


def test_what_cannot_move_is_refused_by_name_and_nothing_has_moved(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    good = torch.ones(10)
    address = good.data_ptr()
    for name, bad in (
        ("sparse", torch.eye(3).to_sparse()),
        ("conjugate", torch.ones(3, dtype=torch.complex64).conj()),
        ("quantized", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
        ("lazy", nn.LazyLinear(3).weight),
        ("resized", _resized()),
        ("number", 3),
    ):
        with pytest.raises(mempool.ConfigError, match=name):
            mempool.adopt({"good": good, name: bad}, pool)  # type: ignore[dict-item]
    for wrong in (3, "model", None):
        with pytest.raises(mempool.ConfigError, match="wants a module"):
            mempool.adopt(wrong, pool)  # type: ignore[arg-type]
    with pytest.raises(mempool.ConfigError, match="MemoryPool"):
        mempool.adopt(good, "pool")  # type: ignore[arg-type]
    assert good.data_ptr() == address
    assert pool.used_bytes() == 0
    assert mempool.adopt(torch.empty(5, device="meta"), pool).tensors == 0


def test_a_limit_stands_and_the_values_stay(enabled: None) -> None:
    pool = mempool.MemoryPool("p", limit="1MiB")
    tensors = [torch.full((MIB // 8,), float(i)) for i in range(4)]
    with pytest.raises(mempool.OutOfMemoryError):
        mempool.adopt(tensors, pool)
    assert [float(tensor[3]) for tensor in tensors] == [0, 1, 2, 3]
    assert pool.used_bytes() == MIB


def test_a_weight_adopted_in_inference_mode_is_trained_afterwards(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    layer = nn.Linear(3, 3)
    with torch.inference_mode():
        mempool.adopt(layer, pool)
        row = torch.ones(3)
        mempool.adopt(row, pool)
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad is not None
    assert pool.stats()["allocation.current"] == 3


def test_names_that_look_alike_are_two_tensors(enabled: None) -> None:
    pool = mempool.MemoryPool("p")
    assert mempool.adopt({1: torch.ones(3), "1": torch.ones(3)}, pool).tensors == 2


def test_a_pool_that_sleeps_takes_no_tensors(enabled: None) -> None:
    pool = mempool.MemoryPool("p", isolated=True)
    pool.sleep()
    with pytest.raises(mempool.PoolAsleepError):
        mempool.adopt(torch.ones(3), pool)


def test_only_what_lies_elsewhere_moves(enabled: None) -> None:
    pool = mempool.MemoryPool("model")
    child = mempool.MemoryPool("part", parent=pool)
    with mempool.use_pool(pool):
        there = torch.arange(100.0)
    with mempool.use_pool(child):
        below = torch.arange(50.0)  # of another account, although it counts in this one, too
    outside = torch.arange(1 << 20, dtype=torch.float32)
    view = there[10:20]
    addresses = there.data_ptr(), view.data_ptr()
    report = mempool.adopt([there, view, below, outside], pool)
    assert report == mempool.AdoptReport(4, 200 + (4 << 20), 0, 400)
    assert (there.data_ptr(), view.data_ptr()) == addresses
    assert child.used_bytes() == 0
    assert float(below[7]) == float(outside[7]) == 7
    large = outside.data_ptr()
    assert mempool.adopt(outside[5:10], pool).already_there_bytes == 4 << 20  # a view is where its storage is
    assert outside.data_ptr() == large


def test_it_moves_nothing_again_in_a_context_that_is_followed(enabled: None) -> None:
    pool, other = mempool.MemoryPool("p"), mempool.MemoryPool("other")
    weight = torch.ones(1000)

    async def main() -> list[int]:
        moved = []
        with mempool.use_pool(other):
            for _ in range(3):
                moved.append(mempool.adopt(weight, pool).moved_bytes)
                await asyncio.sleep(0)
            moved.append((await asyncio.to_thread(mempool.adopt, weight, pool)).moved_bytes)
        return moved

    loop = asyncio.new_event_loop()
    with mempool.follow_context(loop):
        assert loop.run_until_complete(main()) == [4000, 0, 0, 0]
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    assert pool.stats()["allocation.allocated"] == 1
