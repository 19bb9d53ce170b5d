// Tuning constants of the allocator, except those of the page heap (core/pages/policy.h).
//
// Each states its unit, its reason, and the measurement that has set it, if there was one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mempool {

// ---- requests

// Bytes. A larger request could not be rounded, or would pass the 48 bits of address that the page map knows. A limit
// of the data structures: nothing to measure.
inline constexpr std::size_t kLargestRequest = std::size_t{1} << 47;

// Requests in a row for another stream than a thread's cache serves, after which the cache goes over to that stream: by
// then the cost of the change is small beside theirs. Not measured.
inline constexpr int kStrangers = 32;

// ---- thread caches

// Blocks of one size class that a thread may keep, within its number of bytes: as many as a layer's worth of tensors.
// Not measured.
inline constexpr std::uint16_t kBinCapacity = 64;

// Medium and large blocks that a thread may keep where any granule can move: more would wait there unused, for the
// arena takes all of them back before it grows. Not measured.
inline constexpr std::size_t kMostMedium = 128;
inline constexpr std::size_t kMostLarge = 16;

// Bytes of small blocks in a thread's own cache from which on its arena takes them back before it grows: a few of them
// would only cost their slabs. Not measured.
inline constexpr std::size_t kSmallBytesWorthwhile = std::size_t{1} << 20;

// ---- ledger

// A thread that is this far behind the totals is folded: bytes (allocated, or requested) and blocks. They bound by how
// much a peak is too high for each thread that frees what others allocate. Not measured.
inline constexpr std::int64_t kFoldBytes = 256 << 10;
inline constexpr std::int64_t kFoldBlocks = 4096;

// What a lease of small blocks holds beyond the need of the moment, in blocks, bytes and requested bytes alike, while
// there is room for kLeasingThreads threads to lease as much. Not measured.
inline constexpr std::int64_t kAdvanceBlocks = 256;
inline constexpr std::int64_t kAdvanceBytes = 256 << 10;
inline constexpr std::int64_t kLeasingThreads = 8;

// Leases that are refused after all of them were folded for a peak: threads at their common peak then share a lock
// instead of taking each other's leases away in turn. Not measured.
inline constexpr int kLeaseRefusals = 64;

// ---- blocks that wait for other streams

// Small and medium frees on one stream that share an event: recording one is a driver call. Not measured.
inline constexpr std::size_t kShareAnEvent = 64;

// Blocks that one wait tries at most, since a stream under capture cannot be waited for. Not measured.
inline constexpr std::size_t kMostTried = 64;

// ---- decay

// Bytes that go back in one step: no allocation waits longer for the arena than one step takes. Not measured.
inline constexpr std::size_t kDecaySlice = std::size_t{64} << 20;

// The highest demand divided by this stays in addition: demand comes back in other sizes and places. Not measured.
inline constexpr std::size_t kDecayMarginShare = 32;

// Ticks in one decay_ms, and the longest and shortest time between two, in milliseconds. Not measured.
inline constexpr std::int64_t kDecayTicks = 20;
inline constexpr std::int64_t kShortestTickMs = 1;
inline constexpr std::int64_t kLongestTickMs = 40;

// ---- observers

// Bytes of a recording that are gathered before one write. Not measured.
inline constexpr std::size_t kRecorderBufferBytes = std::size_t{1} << 20;

// Blocks and segments that may come while a snapshot makes room for its records. Not measured.
inline constexpr std::size_t kSnapshotSpareBlocks = 4096;
inline constexpr std::size_t kSnapshotSpareSegments = 64;

}  // namespace mempool
