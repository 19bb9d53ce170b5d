"""What the scripts of the tests of switching begin with: each runs in a process in which CUDA is up first."""

from refusing import REFUSED

PRELUDE = (
    REFUSED
    + """
import gc, os, random, sys, threading
import torch, mempool
torch.backends.cudnn.enabled = False
MIB = 1 << 20

def block(count):
    return torch.empty(count, dtype=torch.uint8, device="cuda")

def filled(count, value, device="cuda"):
    return torch.full((count,), value, dtype=torch.uint8).to(device)

def holds(tensor, value):
    return bool((tensor.cpu() == value).all())

def outside(device="cuda"):
    return mempool.memory_stats(device)["outside_bytes"]

def let_go():
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()

def check_device():
    assert mempool._device.KINDS["cuda"].allocator(0).check_invariants() == ""
"""
)

# The controls of the stand-in, for scripts that no GPU can play.
STANDIN = """
import control
standin = control.load(os.environ["CUDA_STANDIN_LIB"])
"""
