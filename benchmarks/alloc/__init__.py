"""Allocation and free by size through torch's `c10::Allocator`, mempool beside the peers."""

_KIB = 2**10
_MIB = 2**20

# Bytes, by the number of blocks that are live at once. 0 allocates nothing: the cost of the call around every other
# row. The rest has two of each kind: small (slabs, up to 32 KiB), middle (up to 1 MiB), large; glibc maps from 128 KiB
# on, until it has seen a size freed, but from 32 MiB on always.
SIZES: dict[int, tuple[int, ...]] = {
    1: (0, 64, 4 * _KIB, 32 * _KIB, 256 * _KIB, _MIB, 4 * _MIB, 16 * _MIB, 64 * _MIB),
    64: (64, 4 * _KIB, 32 * _KIB, 256 * _KIB, _MIB),
    256: (64, 4 * _KIB, 32 * _KIB, 256 * _KIB, _MIB),  # more than mempool's thread caches keep
}
