"""The self-checks of one device, as a child of `children`:  python -m mempool.doctor.checks cuda:0 "limits hold" …"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

import mempool
from mempool._device import kind_of, parse_device
from mempool.doctor import children

MIB = 1 << 20


_PLAIN = "not on this device: it cannot manage virtual memory"


def _is_plain(device: str) -> bool:
    _block(device, 1)  # its allocator is made at the first use
    return not kind_of(device).manages_virtual_memory(parse_device(device).index or 0)


def _block(device: str, mib: int) -> torch.Tensor:
    return kind_of(device).empty(mib * MIB, device)


def _filled(device: str, mib: int, value: int) -> torch.Tensor:
    return kind_of(device).place(torch.full((mib * MIB,), value, dtype=torch.uint8, device="cpu"), device)


def contents_survive(device: str) -> str:
    """What is written is read back."""
    kept = [_filled(device, 3, i) for i in range(8)]
    del kept[::2]
    wide = _block(device, 8)
    assert all(bool((each.cpu() == 2 * i + 1).all()) for i, each in enumerate(kept))
    return f"{mempool.memory_allocated(device)} bytes live with {wide.nbytes} in one block"


def figures_agree(device: str) -> str:
    """mempool's own count is what was asked for."""
    before = mempool.memory_allocated(device)
    kept = _block(device, 5)
    assert mempool.memory_allocated(device) - before == kept.nbytes
    del kept
    assert mempool.memory_allocated(device) == before
    return "allocated bytes follow each block"


def limits_hold(device: str) -> str:
    """A pool refuses what passes its limit, and lives on."""
    pool = mempool.MemoryPool("doctor", device=device, limit="8MiB")
    with mempool.use_pool(pool):
        kept = _block(device, 6)
        try:
            _block(device, 4)
        except mempool.OutOfMemoryError as error:
            info = mempool.oom_info(error)
        else:
            raise AssertionError("a block above the limit was given out")
    assert info is not None
    assert info["pool"] == "doctor"
    assert pool.used_bytes() == kept.nbytes
    return "a request above its pool's limit fails alone"


def memory_moves(device: str) -> str:
    """Free memory is put together under live blocks, whose contents stay."""
    if _is_plain(device):
        return _PLAIN
    mempool.trim(device)  # so that each block has a handle of its own, on CUDA
    kept = [_filled(device, 4, i) for i in range(16)]
    del kept[::2]
    held = mempool.memory_reserved(device)
    report = mempool.defragment(device)
    wide = _block(device, 24)
    assert mempool.memory_reserved(device) <= held + 2 * MIB, "new memory was taken while enough was free"
    assert all(bool((each.cpu() == 2 * i + 1).all()) for i, each in enumerate(kept))
    assert wide.nbytes == 24 * MIB
    return f"{report.moved_handles} handles moved in {report.seconds * 1e3:.1f} ms"


def sleep_gives_memory_back(device: str) -> str:
    """A pool that sleeps holds nothing; awake, its contents are where they were."""
    if _is_plain(device):
        return _PLAIN
    pool = mempool.MemoryPool("doctor sleeps", device=device, isolated=True)
    with mempool.use_pool(pool):
        kept = _filled(device, 8, 7)
    address = kept.data_ptr()
    pool.sleep()
    assert pool.total_bytes() == 0
    pool.wake()
    assert kept.data_ptr() == address
    assert bool((kept.cpu() == 7).all())
    return "8 MiB went and came back to the same address"


def streams_are_waited_for(device: str) -> str:
    """A block that another stream uses is not given out again before that stream is done."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    source = _filled(device, 16, 3)
    target = _block(device, 16)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(8):
            target.copy_(source)
    source.record_stream(side)
    del source
    for value in range(4):
        _filled(device, 16, value)
    torch.cuda.synchronize(device)
    assert bool((target.cpu() == 3).all())
    return "record_stream is heeded"


def graphs_replay(device: str) -> str:
    """A captured graph finds its memory where it was, whatever moved meanwhile."""
    with torch.cuda.device(device):
        source, target = torch.zeros(MIB, device=device), torch.zeros(MIB, device=device)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            target.copy_(source)
        mempool.defragment(device)
        source.copy_(torch.full((MIB,), 5.0))
        graph.replay()
        torch.cuda.synchronize()
        assert bool((target.cpu() == 5).all())
    return "a replay after defragment() writes the right data"


def copies_are_waited_for(device: str) -> str:
    """A block that a copy to a GPU reads is not given out again before the copy is done."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    source = _filled(device, 16, 3)
    target = torch.empty(source.numel(), dtype=torch.uint8, device="cuda")
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(8):
            target.copy_(source, non_blocking=True)
    del source
    for value in range(4):
        _filled(device, 16, value)
    torch.cuda.synchronize()
    assert bool((target.cpu() == 3).all())
    return "copies without a wait are heeded"


def everything_goes_back(device: str) -> str:
    """With nothing live, every byte returns."""
    mempool.trim(device)
    held = mempool.memory_reserved(device) - mempool.memory_allocated(device)
    assert held <= 4 * MIB, f"{held} bytes are held and free after a trim"
    return f"{mempool.memory_reserved(device)} bytes held"


_COMMON: tuple[Callable[[str], str], ...] = (
    contents_survive,
    figures_agree,
    limits_hold,
    memory_moves,
    sleep_gives_memory_back,
)


_OF_KIND: dict[str, tuple[Callable[[str], str], ...]] = {
    "cuda": (streams_are_waited_for, graphs_replay),
    "pinned": (copies_are_waited_for,),
}


def of_device(device: str) -> dict[str, Callable[[str], str]]:
    """The checks of a device by name, in their order."""
    own = _OF_KIND.get(kind_of(device).name, ())
    return {check.__name__.replace("_", " "): check for check in (*_COMMON, *own, everything_goes_back)}


def main(device: str, names: list[str]) -> None:
    """Answers with a detail for each check. After one that has failed another process has to go on."""
    mempool.enable(kind_of(device).name)
    checks = of_device(device)

    def answer(name: str) -> tuple[dict[str, object], bool]:
        try:
            return {"passed": True, "detail": checks[name](device)}, True
        except Exception as error:  # any failure is what this looks for
            return {"passed": False, "detail": f"{type(error).__name__}: {error}"}, False

    children.serve(names, answer)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
