"""Pairs of alloc and free by size, mempool beside torch's own allocator."""

# Bytes. 0 makes a tensor but allocates nothing: the cost of the loop and of the tensor object around every other row.
# The rest has two of each kind: small (slabs, up to 32 KiB), middle (up to 1 MiB), large; glibc maps from 128 KiB on,
# until it has seen a size freed, but from 32 MiB on always.
SIZES = (0, 64, 4096, 32 * 2**10, 256 * 2**10, 2**20, 4 * 2**20, 16 * 2**20, 64 * 2**20)
