"""Whole model steps: time, page faults, peak memory and bit-equality, mempool beside torch's own allocator."""
