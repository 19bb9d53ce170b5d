"""mempool's CUDA allocator beside torch's own, on a GPU or on the stand-in that the tests use."""

SIDES = ("native", "expandable", "mempool")
DEVICES = ("real", "stand-in")
