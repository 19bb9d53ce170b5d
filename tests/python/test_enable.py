"""``enable`` and ``disable``: what is counted, and that no block is lost in any sequence of them."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable

import pytest
import torch

import mempool
from mempool._device_cpu import cpu


def test_bytes_grow_and_return_exactly(live_bytes: Callable[[], int]) -> None:
    x = torch.ones(1 << 20)
    assert live_bytes() == 4 << 20
    y = torch.ones(100)  # 400 bytes: the next multiple of 64
    assert live_bytes() == (4 << 20) + 448
    z = torch.ones(5000)  # 20,000 bytes: the next eighth of 16 KiB
    assert live_bytes() == (4 << 20) + 448 + 20480
    w = torch.ones(300_001)  # 1,200,004 bytes: the next multiple of 4 KiB
    assert live_bytes() == (4 << 20) + 448 + 20480 + 1200128
    del x, y, z, w
    assert live_bytes() == 0


def test_requested_bytes_are_what_torch_asked_for(enabled: None) -> None:
    before = mempool.memory_stats("cpu")["requested_bytes.all.current"]
    x = torch.ones(101)
    assert mempool.memory_stats("cpu")["requested_bytes.all.current"] - before == 404
    del x
    assert mempool.memory_stats("cpu")["requested_bytes.all.current"] == before


def test_zero_bytes_are_not_counted(live_bytes: Callable[[], int]) -> None:
    x = torch.empty(0)
    assert x.data_ptr() == 0
    assert live_bytes() == 0


def test_enable_says_what_is_enabled_and_is_idempotent() -> None:
    result = mempool.enable()
    assert result["cpu"] is True
    assert isinstance(result["cuda"], str)
    assert mempool.enable("cpu") == {"cpu": True}
    assert mempool.enable(torch.device("cpu")) == {"cpu": True}
    assert mempool.is_enabled("cpu")
    assert not mempool.is_enabled("cuda")
    mempool.disable()
    assert not mempool.is_enabled("cpu")
    mempool.disable("cpu")


def test_tensors_survive_the_switch_in_both_directions() -> None:
    mempool.disable()
    before = torch.arange(100_000)
    mempool.enable("cpu")
    start = mempool.memory_allocated("cpu")
    during = torch.arange(100_000)
    mempool.disable()
    after = torch.arange(100_000)
    assert mempool.memory_allocated("cpu") - start == 802816  # 800,000 bytes in pages of 4 KiB
    assert torch.equal(before, during)
    assert torch.equal(during, after)
    del during
    assert mempool.memory_allocated("cpu") == start
    mempool.enable("cpu")
    del before, after
    mempool.disable()


def test_resize_moves_storage_between_allocators() -> None:
    mempool.disable()
    x = torch.arange(1000)
    mempool.enable("cpu")
    start = mempool.memory_allocated("cpu")
    x.resize_(100_000)  # reallocates with the allocator of now, frees with that of then
    assert torch.equal(x[:1000], torch.arange(1000))
    mempool.disable()
    x.resize_(200_000)
    assert torch.equal(x[:1000], torch.arange(1000))
    del x
    assert mempool.memory_allocated("cpu") == start


def test_switching_from_any_thread_while_others_allocate() -> None:
    start = mempool.memory_allocated("cpu")
    stop = threading.Event()
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        kept: list[tuple[torch.Tensor, float]] = []
        try:
            while not stop.is_set():
                value = rng.random()
                kept.append((torch.full((rng.randrange(1, 50_000),), value), value))
                if len(kept) > 20:
                    tensor, expected = kept.pop(rng.randrange(len(kept)))
                    assert tensor[0].item() == pytest.approx(expected)
                    assert tensor[-1].item() == pytest.approx(expected)
        except BaseException as error:
            errors.append(error)

    def switch() -> None:
        for turn in range(300):
            mempool.enable("cpu") if turn % 2 else mempool.disable()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    switchers = [threading.Thread(target=switch) for _ in range(2)]
    for thread in threads + switchers:
        thread.start()
    for thread in switchers:
        thread.join()
    stop.set()
    for thread in threads:
        thread.join()
    mempool.disable()
    gc.collect()
    assert errors == []
    assert mempool.memory_allocated("cpu") == start


@pytest.mark.parametrize("device", ["gpu", "", "meta", "xpu", 3.5, "cpu:zero"])
def test_an_unknown_device_is_refused(device: object) -> None:
    for call in (mempool.enable, mempool.disable, mempool.is_enabled, mempool.memory_allocated):
        with pytest.raises(mempool.ConfigError, match="mempool"):
            call(device)  # type: ignore[operator]


def test_a_named_device_that_cannot_be_used_raises() -> None:
    with pytest.raises(mempool.DeviceError, match="cuda"):
        mempool.enable("cuda")
    with pytest.raises(mempool.DeviceError, match="cuda"):
        mempool.memory_stats("cuda")


def test_no_device_means_the_enabled_one() -> None:
    mempool.disable()
    with pytest.raises(mempool.DeviceError, match=r"mempool\.enable"):
        mempool.memory_allocated()
    mempool.enable("cpu")
    assert mempool.memory_allocated() == mempool.memory_allocated("cpu")
    mempool.disable()


def test_memory_goes_back_when_asked(enabled: None) -> None:
    x = torch.ones(16 << 20)
    held = mempool.memory_reserved()
    del x
    assert mempool.memory_reserved() == held
    mempool.empty_cache()
    assert mempool.memory_reserved() <= held - (60 << 20)
    x = torch.ones(16 << 20)
    del x
    given = mempool.trim(target_bytes=mempool.memory_reserved() - (10 << 20))
    assert given == 10 << 20
    assert mempool.trim(target_bytes="1GiB") == 0


def test_the_library_says_nothing_by_itself(python: Callable[..., object]) -> None:
    done = python(
        "import torch, mempool\n"
        "mempool.enable(limit='64MiB')\n"
        "mempool.on_pressure(lambda pool, needed: 1 / 0)\n"
        "try: torch.ones(1 << 26)\n"
        "except mempool.OutOfMemoryError: pass\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")  # type: ignore[attr-defined]


def test_the_device_object_is_one() -> None:
    assert cpu() is cpu()
