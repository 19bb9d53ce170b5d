"""Allocation and free by size through torch's `c10::Allocator`, mempool beside the peers."""

_KIB = 2**10
_MIB = 2**20

# Sizes in bytes, by the number of blocks that are live at once. 0 allocates nothing, and measures the cost of the call,
# which is part of every other row. The other sizes are two of each kind: small (slabs, up to 32 KiB), medium (up to 1
# MiB), large. glibc maps blocks from 128 KiB on until one of that size was freed, and from 32 MiB on always.
SIZES: dict[int, tuple[int, ...]] = {
    1: (0, 64, 4 * _KIB, 32 * _KIB, 256 * _KIB, _MIB, 4 * _MIB, 16 * _MIB, 64 * _MIB),
    64: (64, 4 * _KIB, 32 * _KIB, 256 * _KIB, _MIB),
    256: (64, 4 * _KIB, 32 * _KIB, 256 * _KIB, _MIB),
}

# The same for threads that each have many blocks: 0 live is a loop that shares nothing.
MANY_LIVE: dict[int, tuple[int, ...]] = {0: (0,), 256: tuple(size * _KIB for size in (32, 64, 128, 256, 512, 1024))}
