"""Forked children of a process that has used CUDA: nothing of it works there, and nothing hangs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., str]

# Threads of the parent allocate and free all the time, so that locks are held when it forks.
PARENT = """
import os, sys, threading, torch, mempool
torch.backends.cudnn.enabled = False
devices = {devices!r}
mempool.enable(*devices[:1]) if len(devices) == 1 else mempool.enable()
kept = [torch.ones(1000).to(each) for each in devices]
stop = threading.Event()

def work(device):
    stream = torch.cuda.Stream() if device == "cuda" else None
    pool = mempool.MemoryPool("thread", device=device)
    while not stop.is_set():
        with mempool.use_pool(pool):
            blocks = [torch.empty(size, dtype=torch.uint8, device=device) for size in (100, 100_000, 3_000_000)]
        if stream is not None:
            for block in blocks:
                block.record_stream(stream)
        del blocks
        mempool.memory_stats(device)

threads = [threading.Thread(target=work, args=(each,)) for each in devices for _ in range(2)]
for thread in threads:
    thread.start()

def use_everything():
    mempool.memory_stats(devices[0])
    if "cpu" in devices:
        assert torch.ones(300_000).sum() == 300_000
        mempool.trim("cpu")
    if "cuda" in devices:
        mempool.trim("cuda")
        mempool.memory_snapshot("cuda")
        try:
            torch.cuda.caching_allocator_alloc(100)
        except RuntimeError as error:
            assert "fork" in str(error), error
        else:
            raise AssertionError("memory of a device in a forked child")

def in_child():
{leave}

def end(children):
    for child in children:
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == {status}, status

def fork_once():
    child = os.fork()
    if child == 0:
        in_child()
    return child

{body}
stop.set()
for thread in threads:
    thread.join()
assert all(bool((each.cpu() == 1).all()) for each in kept)
print("well")
"""

IN_TURN = "for _ in range(12):\n    end([fork_once()])"
LEAVES = {
    "sys.exit": ("    use_everything()\n    sys.exit(3)", 3, IN_TURN),
    "an exception": ("    use_everything()\n    raise ValueError('on purpose')", 1, IN_TURN),
    "a thread that ends": (
        "    global kept\n"
        "    def run():\n"
        "        use_everything()\n"
        "    thread = threading.Thread(target=run)\n"
        "    thread.start()\n"
        "    thread.join()\n"
        "    kept = []\n"
        "    sys.exit(4)",
        4,
        IN_TURN,
    ),
    # The thread that forks is the child's only one. Python 3.11 aborts where it returns, with mempool and without.
    "a thread that forks": (
        "    use_everything()\n    os._exit(0)",
        0,
        "children = []\n"
        "for _ in range(12):\n"
        "    forking = threading.Thread(target=lambda: children.append(fork_once()))\n"
        "    forking.start()\n"
        "    forking.join()\n"
        "end(children)",
    ),
}


@pytest.mark.parametrize("devices", [("cuda",), ("cpu", "cuda")], ids=["cuda", "both"])
@pytest.mark.parametrize("leave", LEAVES)
def test_a_child_ends_whichever_way_it_leaves(run_on_device: Run, leave: str, devices: tuple[str, ...]) -> None:
    text, status, body = LEAVES[leave]
    script = PARENT.format(devices=devices, leave=text, status=status, body=body)
    assert run_on_device(script).strip().endswith("well")


UNUSED = """
import os, torch, mempool
assert mempool.is_enabled("cuda")
for _ in range(2):
    child = os.fork()
    if child == 0:
        block = torch.empty(5 << 20, dtype=torch.uint8, device="cuda")
        kept = mempool.memory_allocated("cuda"), mempool.get_limit("cuda")
        del block
        left = mempool.memory_allocated("cuda")
        os.write(1, f"{kept} {left}\\n".encode())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
torch.empty(1, device="cuda")
"""


def test_a_parent_that_has_not_used_cuda_leaves_it_to_its_children(run_on_device: Run) -> None:
    out = run_on_device(UNUSED, MEMPOOL_ENABLE="cuda=1GiB")
    assert out.splitlines() == ["(5242880, 1073741824) 0"] * 2


def test_enabling_by_the_environment_asks_nothing_of_the_driver(run_on_device: Run) -> None:
    script = (
        "import ctypes, torch\n"
        "standin = ctypes.CDLL(None)\n"
        "standin.standin_count.restype = ctypes.c_uint64\n"
        "print([standin.standin_count(name) for name in (b'cudaGetDeviceCount', b'cuInit', b'cudaMemGetInfo')])\n"
        "import mempool; print(mempool.is_enabled('cuda'), mempool.get_limit('cuda'))"
    )
    out = run_on_device(script, MEMPOOL_ENABLE="cuda=50%")
    assert out.splitlines() == ["[0, 0, 0]", f"True {8 << 30}"]
