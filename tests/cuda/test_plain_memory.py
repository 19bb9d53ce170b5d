"""A device that cannot manage virtual memory: the allocator on plain allocations, and what it says it cannot do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import control
import pytest

pytestmark = pytest.mark.stand_in

Run = Callable[..., str]

PRELUDE = f"""
import os, sys
sys.path.insert(0, {str(Path(control.__file__).parent)!r})
import control
standin = control.load(os.environ["CUDA_STANDIN_LIB"])
standin.set_manages_virtual_memory(False)
standin.set_device_count(2)  # torch counts them once
import torch, mempool
torch.backends.cudnn.enabled = False
mempool.enable("cuda")
"""


def test_a_model_trains_and_every_byte_goes_back(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
model = torch.nn.TransformerEncoderLayer(128, 4, 256, batch_first=True).cuda()
optimizer = torch.optim.AdamW(model.parameters())
for length in (10, 80, 40):
    model(torch.rand(4, length, 128, device="cuda")).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
assert standin.count("cuMemAlloc") > 0 and standin.count("cuMemCreate") == standin.count("cuMemMap") == 0
with mempool.use_pool(mempool.MemoryPool("small", limit="1MiB", device="cuda")):
    try:
        torch.empty(2 << 20, dtype=torch.uint8, device="cuda")
    except torch.cuda.OutOfMemoryError as error:
        assert "small" in str(error)
    else:
        raise AssertionError("the limit did not hold")
assert mempool.memory_reserved("cuda") == standin.used()
kept = torch.full((1000,), 3.0).cuda()  # kernels do nothing on the stand-in, copies do
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    twice = kept + kept
assert mempool.memory_reserved("cuda") == standin.used()
del model, optimizer, graph, twice
import gc; gc.collect()
torch._C._cuda_clearCublasWorkspaces()
assert kept.cpu().sum() == 3000
del kept
torch.cuda.empty_cache()
held = mempool.memory_reserved("cuda"), standin.used(), mempool.memory_allocated("cuda")
assert held == (0, 0, 0), held
"""
    )


def test_what_needs_virtual_memory_says_so(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
pool = mempool.MemoryPool("weights", device="cuda", isolated=True)
with mempool.use_pool(pool):
    weights = torch.zeros(1 << 20, device="cuda")
try:
    pool.sleep()
except mempool.ConfigError as error:
    assert "cannot manage virtual memory" in str(error)
else:
    raise AssertionError("it slept")
try:
    weights.untyped_storage()._share_cuda_()
except RuntimeError as error:
    assert "mempool" in str(error), error
else:
    raise AssertionError("it was shared")
"""
    )


def test_other_devices_and_the_doctor(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
from mempool.doctor import checks
there = torch.arange(1000).to("cuda:0").to("cuda:1")
assert (there.cpu() == torch.arange(1000)).all()
for check in (checks.memory_moves, checks.sleep_gives_memory_back):
    assert "cannot manage virtual memory" in check("cuda:1")
checks.limits_hold("cuda:0")
"""
    )
