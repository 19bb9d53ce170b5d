"""CUDA memory that is shared with other processes: shareIpcHandle, getIpcDevPtr."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

import mempool

MIB = 1 << 20


pytestmark = pytest.mark.usefixtures("enabled")


def block(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8, device="cuda")


RECEIVER = """
import torch, mempool
mempool.enable("cuda")
torch.cuda.init()
storage = torch.UntypedStorage._new_shared_cuda(*{handle!r})
tensor = torch.empty(0, dtype=torch.uint8, device="cuda").set_(storage)
assert bool((tensor.cpu() == 7).all())
tensor.copy_(torch.full(tensor.shape, 9, dtype=torch.uint8))
torch.cuda.synchronize()
del tensor, storage  # tells the sender
"""


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_another_process_maps_the_same_memory(run_on_device: Any) -> None:
    """The stand-in has no events that processes share: the receiver is started when the sender's work is done."""
    filler = block(3)
    shared = torch.full((5 * MIB,), 7, dtype=torch.uint8).cuda()
    handle = shared.untyped_storage()._share_cuda_()
    assert handle[2] == shared.nbytes
    run_on_device(RECEIVER.format(handle=tuple(handle)))
    assert bool((shared.cpu() == 9).all())
    # What others have mapped stays where it is.
    address = shared.data_ptr()
    del filler
    mempool.defragment("cuda")
    torch.cuda.empty_cache()
    assert shared.data_ptr() == address
    assert bool((shared.cpu() == 9).all())


def test_memory_that_was_shared_goes_back_once_nobody_has_it(run_on_device: Any) -> None:
    gc.collect()
    torch.cuda.ipc_collect()
    torch.cuda.empty_cache()
    opened, held = descriptors(), torch.cuda.memory_reserved()
    shared = [torch.full((64 * MIB,), 7, dtype=torch.uint8).cuda() for _ in range(3)]
    handles = [each.untyped_storage()._share_cuda_() for each in shared]
    opened_once = descriptors()
    handles.append(shared[0].untyped_storage()._share_cuda_())
    assert handles[3][1] == handles[0][1]  # another receiver costs nothing
    assert descriptors() <= opened_once + 1  # torch's own file
    assert descriptors() > opened
    for i, handle in enumerate(handles):
        shared[i % 3].copy_(torch.full((64 * MIB,), 7, dtype=torch.uint8))  # a receiver writes
        run_on_device(RECEIVER.format(handle=tuple(handle)))
    del shared, handles
    gc.collect()
    torch.cuda.ipc_collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == held
    assert descriptors() <= opened + 1  # torch keeps its file of counters open


def test_a_pool_with_shared_memory_sleeps_once_that_is_gone(run_on_device: Any) -> None:
    pool = mempool.MemoryPool("weights", device="cuda", isolated=True)
    with mempool.use_pool(pool):
        kept = torch.full((5 * MIB,), 7, dtype=torch.uint8).cuda()
        shared = torch.full((5 * MIB,), 7, dtype=torch.uint8).cuda()
    handle = shared.untyped_storage()._share_cuda_()
    with pytest.raises(RuntimeError, match="shared with other processes"):
        pool.sleep()
    run_on_device(RECEIVER.format(handle=tuple(handle)))
    del shared
    gc.collect()
    torch.cuda.ipc_collect()
    pool.sleep()
    assert pool.total_bytes() == 0
    pool.wake()
    assert bool((kept.cpu() == 7).all())
    del kept
    pool.close()
