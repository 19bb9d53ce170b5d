"""mempool's CUDA allocator beside torch's own, on the stand-in that the tests use (or on a GPU)."""

SIDES = ("native", "expandable", "mempool")
