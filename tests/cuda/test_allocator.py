"""The features of the CPU on CUDA (pools, limits, pressure, sleep, traces), and those that need streams."""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import control
import pytest
import torch

import mempool

MIB = 1 << 20


pytestmark = pytest.mark.usefixtures("enabled")


def block(mib: float) -> torch.Tensor:
    return torch.empty(int(mib * MIB), dtype=torch.uint8, device="cuda")


# ---- pools and limits


def test_a_pool_refuses_alone_and_the_others_live_on() -> None:
    model = mempool.MemoryPool("model", device="cuda", limit="64MiB")
    request = mempool.MemoryPool("request", device="cuda", limit="16MiB", parent=model)
    with mempool.use_pool(request):
        kept = block(10)
        with pytest.raises(mempool.OutOfMemoryError) as caught:
            block(10)
    info = mempool.oom_info(caught.value)
    assert info is not None
    assert (info["reason"], info["pool"], info["limit"]) == ("pool_limit", "request", 16 * MIB)
    assert "CUDA out of memory. Tried to allocate 10.00 MiB" in str(caught.value)
    assert model.used_bytes() == request.used_bytes() == 10 * MIB
    outside = block(10)
    assert model.used_bytes() == 10 * MIB
    del kept
    assert request.used_bytes() == 0
    assert request.peak_bytes() == 10 * MIB
    assert outside.is_cuda


@pytest.fixture
def on_the_cpu_too() -> Iterator[None]:
    mempool.enable("cpu")
    yield
    mempool.disable("cpu")


def test_pools_of_two_devices_do_not_mix(on_the_cpu_too: None) -> None:
    cpu = mempool.MemoryPool("host", device="cpu")
    cuda = mempool.MemoryPool("device", device="cuda")
    with mempool.use_pool(cuda), mempool.use_pool(cpu):
        kept = block(4)
        assert mempool.current_pool("cuda") is cuda
        assert mempool.current_pool("cpu") is cpu
    assert (cuda.used_bytes(), cpu.used_bytes()) == (4 * MIB, 0)
    assert kept.is_cuda


def test_the_device_limit_bounds_what_is_held(standin: control.Standin) -> None:
    mempool.set_limit(mempool.memory_reserved("cuda") + 40 * MIB, "cuda")
    try:
        kept = [block(4) for _ in range(8)]
        with pytest.raises(mempool.OutOfMemoryError) as caught:
            block(16)
        info = mempool.oom_info(caught.value)
        assert info is not None
        assert info["reason"] == "device_limit"
        assert standin.used() <= 40 * MIB
        del kept[::2]
        wide = block(16)  # out of the four gaps
        assert standin.used() <= 40 * MIB
        assert wide.is_cuda
    finally:
        mempool.set_limit(None, "cuda")


def test_pressure_callbacks_save_an_allocation(standin: control.Standin) -> None:
    cache = [block(30)]
    heard = []

    def drop(pool: str, needed: int) -> None:
        heard.append((pool, needed))
        cache.clear()

    standin.set_capacity(standin.used() + 8 * MIB)
    handle = mempool.on_pressure(drop)
    try:
        kept = block(32)
    finally:
        handle.remove()
    assert heard == [("default", 32 * MIB)]
    assert kept.is_cuda


def test_memory_that_nobody_needs_goes_back(run_on_device: Callable[..., str]) -> None:
    run_on_device(
        """
import time, torch, mempool
mempool.enable("cuda")
kept = torch.empty(4 << 20, dtype=torch.uint8, device="cuda")
dropped = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
del dropped
deadline = time.monotonic() + 20
while mempool.memory_reserved("cuda") > 16 << 20 and time.monotonic() < deadline:
    time.sleep(0.02)
assert mempool.memory_reserved("cuda") <= 16 << 20
""",
        MEMPOOL_CONF="decay_ms:200",
    )


# ---- sleep


def test_sleep_gives_all_memory_up_and_wake_brings_it_back(standin: control.Standin) -> None:
    pool = mempool.MemoryPool("weights", device="cuda", isolated=True)
    with mempool.use_pool(pool):
        weights = [torch.full((3 * MIB,), i, dtype=torch.uint8).cuda() for i in range(4)]
    addresses = [w.data_ptr() for w in weights]
    used = standin.used()
    for _ in range(3):
        pool.sleep()
        assert pool.asleep
        assert standin.used() <= used - 12 * MIB
        with mempool.use_pool(pool), pytest.raises(RuntimeError, match="asleep"):
            block(1)
        pool.wake()
        assert [w.data_ptr() for w in weights] == addresses
        assert all(bool((w.cpu() == i).all()) for i, w in enumerate(weights))
    pool.sleep(keep=False)
    pool.wake()
    assert [w.data_ptr() for w in weights] == addresses


@pytest.mark.parametrize(
    "call", ["cuMemUnmap", "cuMemRelease", "cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemcpyDtoH"]
)
def test_sleep_is_all_or_nothing(standin: control.Standin, call: str) -> None:
    pool = mempool.MemoryPool("weights", device="cuda", isolated=True)
    with mempool.use_pool(pool):
        weights = [torch.full((3 * MIB,), i, dtype=torch.uint8).cuda() for i in range(4)]
    for nth in range(1, 6):
        standin.fail(call, nth)
        try:
            pool.sleep()
            pool.wake()
        except (RuntimeError, mempool.OutOfMemoryError):
            standin.fail(call, 0)
            if pool.asleep:
                pool.wake()
        standin.fail(call, 0)
        assert not pool.asleep
        assert all(bool((w.cpu() == i).all()) for i, w in enumerate(weights)), (call, nth)


def test_a_thousand_naps_lose_nothing(standin: control.Standin) -> None:
    pool = mempool.MemoryPool("weights", device="cuda", isolated=True)
    with mempool.use_pool(pool):
        weights = torch.full((3 * MIB,), 7, dtype=torch.uint8).cuda()
    address, live, used = weights.data_ptr(), standin.live(), standin.used()
    for nap in range(1000):
        if nap % 10 == 0:
            standin.fail("cuMemCreate", nap % 3 + 1)
        pool.sleep()
        try:
            pool.wake()
        except mempool.OutOfMemoryError:
            pool.wake()
        standin.fail("cuMemCreate", 0)
    assert weights.data_ptr() == address
    assert bool((weights.cpu() == 7).all())
    assert (standin.live(), standin.used()) == (live, used)


# ---- traces


def test_a_recording_has_streams_and_replays(tmp_path: Path) -> None:
    side = torch.cuda.Stream()
    path = tmp_path / "trace.csv"
    with mempool.record_trace(path, "cuda") as recording:
        first = block(4)
        first.record_stream(side)
        with torch.cuda.stream(side):
            second = block(2)
        recording.step()
        del first, second
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    assert [(row[1], row[2], row[4]) for row in rows] == [
        ("alloc", "0", "0"),
        ("record_stream", "0", "1"),
        ("alloc", "1", "1"),
        ("step", "0", "0"),
        ("free", "0", "0"),
        ("free", "1", "0"),
    ]
    report = mempool.replay(path, device="cuda")
    assert report.peak_live_bytes == 6 * MIB
    assert report.peak_held_bytes == 6 * MIB


# ---- streams


def test_a_late_stream_loses_nothing(standin: control.Standin) -> None:
    """Work is put off at random while blocks change hands between streams: a block that is reused too early is seen."""
    streams = [torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
    choose = random.Random(5)
    live: list[tuple[torch.Tensor, int, torch.cuda.Stream]] = []
    held = [standin.held(stream) for stream in streams]
    for each in held:
        each.__enter__()
    try:
        for seed in range(1, 1500):
            stream = choose.randrange(3)
            if len(live) < 12 or choose.random() < 0.5:
                with torch.cuda.stream(streams[stream]):
                    made = block(choose.choice([0.001, 0.1, 0.5, 3, 9]))
                standin.write_later(streams[stream], made.data_ptr(), made.nbytes, seed)
                standin.check_later(streams[stream], made.data_ptr(), made.nbytes, seed)
                live.append((made, seed, streams[stream]))
            else:
                gone, own, home = live.pop(choose.randrange(len(live)))
                if (
                    choose.random() < 0.5
                ):  # used on another stream too: what it writes there must stay until it has read
                    other = streams[choose.randrange(3)]
                    other.wait_stream(home)
                    standin.write_later(other, gone.data_ptr(), gone.nbytes, own)
                    standin.check_later(other, gone.data_ptr(), gone.nbytes, own)
                    gone.record_stream(other)
                del gone
            if choose.random() < 0.3:
                standin.step(streams[choose.randrange(3)], choose.randrange(1, 6))
    finally:
        for each in held:
            each.__exit__(None, None, None)
    torch.cuda.synchronize()
    live.clear()
    assert standin.violations() == 0


# ---- training


def train(steps: int, lengths: list[int]) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.TransformerEncoderLayer(256, 4, 512, batch_first=True) for _ in range(4)))
    model = model.cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(steps):
        model(torch.empty(4, lengths[step % len(lengths)], 256, device="cuda")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    time.sleep(0.05)  # autograd's threads


def test_training_of_a_fixed_shape_comes_to_rest(standin: control.Standin) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True) for _ in range(4)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(256, 4000)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    names = (
        "cuMemCreate",
        "cuMemMap",
        "cuMemUnmap",
        "cuMemSetAccess",
        "cuMemRelease",
        "cuMemAddressReserve",
        "cudaMalloc",
    )
    for step in range(20):
        if step == 10:
            standin.reset()
        model(torch.empty(8, 128, 256, device="cuda")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    time.sleep(0.05)
    assert {name: standin.count(name) for name in names} == dict.fromkeys(names, 0)


def test_training_of_varying_lengths_holds_little_more_than_it_uses() -> None:
    torch.cuda.reset_peak_memory_stats()
    choose = random.Random(3)
    train(12, [choose.randrange(64, 512) for _ in range(12)])
    assert torch.cuda.max_memory_reserved() <= 1.2 * torch.cuda.max_memory_allocated()


@pytest.mark.parametrize(
    "call", ["cuMemAddressReserve", "cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemUnmap", "cuEventRecord"]
)
def test_every_driver_call_may_fail_once(standin: control.Standin, call: str) -> None:
    side = torch.cuda.Stream()
    for nth in range(1, 8):
        standin.fail(call, nth)
        live = []
        messages: list[str] = []
        for step in range(24):
            try:
                with torch.cuda.stream(side if step % 3 == 0 else torch.cuda.default_stream()):
                    live.append(block(1 + step % 5))
            except torch.OutOfMemoryError as error:
                assert "mempool" in str(error)
            if step % 2:
                live[0].record_stream(side)
                del live[0]
        assert all("mempool" in message for message in messages)
        standin.fail(call, 0)
        torch.cuda.synchronize()
        del live
        torch.cuda.empty_cache()
        assert torch.cuda.memory_allocated() == 0
        assert torch.cuda.memory_reserved() == standin.used() == 0


def test_a_refused_request_holds_nothing_more(standin: control.Standin) -> None:
    kept = torch.empty(100 * MIB, dtype=torch.uint8, device="cuda")
    held = torch.cuda.memory_reserved()
    peak = torch.cuda.max_memory_reserved()
    for size in (20 << 30, (16 << 30) - 50 * MIB):
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(size, dtype=torch.uint8, device="cuda")
        assert torch.cuda.memory_reserved() == held
        assert torch.cuda.max_memory_reserved() == peak
        assert standin.used() == held
    assert standin.count("cuMemCreate") < 512
    del kept


def test_a_pool_that_is_closed_and_empty_holds_nothing(standin: control.Standin) -> None:
    pool = mempool.MemoryPool("weights", device="cuda", isolated=True)
    with mempool.use_pool(pool):
        kept = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    used = standin.used()
    pool.close()
    assert standin.used() == used
    del kept
    assert pool.total_bytes() == 0
    assert standin.used() == used - 64 * MIB


@pytest.mark.parametrize("is_made_there", [False, True])
def test_memory_used_by_a_destroyed_stream_comes_back(standin: control.Standin, is_made_there: bool) -> None:
    handle = ctypes.c_void_p()
    assert standin.runtime.cudaStreamCreateWithFlags(ctypes.byref(handle), 1) == 0
    held, violations = torch.cuda.memory_reserved(), standin.violations()
    stream = torch.cuda.ExternalStream(handle.value)
    with torch.cuda.stream(stream if is_made_there else torch.cuda.current_stream()):
        used = block(40)
    used.record_stream(stream)
    standin.runtime.standin_hold(handle, 1)
    standin.write_later(stream, used.data_ptr(), used.nbytes, 1)
    standin.check_later(stream, used.data_ptr(), used.nbytes, 1)
    assert standin.runtime.cudaStreamDestroy(handle) == 0
    del used
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == held
    assert torch.cuda.memory_stats()["active_bytes.all.current"] == torch.cuda.memory_allocated()
    assert standin.violations() == violations
