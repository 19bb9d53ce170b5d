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

// Blocks of one size class that a thread has room for at first, and the most that it may keep, within its number of
// bytes: beyond them threads wait for each other at the arena's lock. Not measured.
inline constexpr std::uint16_t kFirstBinCapacity = 64;
inline constexpr std::uint16_t kMostInBin = 512;

// Medium and large blocks that a thread may keep where any granule can move: nothing more is held because of them, for
// the arena takes all of them back before it grows. Medium, 128: two threads with 256 blocks of 256 KiB live took 680
// ns for a pair, not 70, and the five recorded traces held 1.0084 of what was live, not 1.0091. Large: not measured.
inline constexpr std::size_t kMostMedium = 512;
inline constexpr std::size_t kMostLarge = 16;

// Medium blocks of one size that a thread takes from the arena at once, if it has come for that size alone before. They
// lie together, and so do their records: two threads that take turns at single ones slow each other down later, as each
// core fetches ahead what the other one writes. Not measured.
inline constexpr std::size_t kMostRefilled = 16;

// Bytes of small blocks in a thread's cache from which on the arena takes them back before it grows. They may be of
// 512 of the smallest blocks, each of which keeps a slab: 32 MiB. Not measured.
inline constexpr std::size_t kSmallBytesWorthwhile = std::size_t{32} << 10;
// The same where handles stay whole and a thread keeps few of a size: there training of a fixed shape comes to rest
// later if its small blocks move.
inline constexpr std::size_t kSmallBytesWorthwhileOfWhole = std::size_t{1} << 20;

// ---- ledger

// A thread that is this far behind the totals is folded: bytes (allocated, or requested) and blocks. They bound by how
// much a peak is too high for each thread that frees what others allocate. Not measured.
inline constexpr std::int64_t kFoldBytes = 256 << 10;
inline constexpr std::int64_t kFoldBlocks = 4096;

// The parts of the room below the peaks that one lease takes beyond the need of the moment, within the thread's share
// of the room and beyond it. As each takes a part of what is left, any number of threads get theirs, and a thread on
// its way up asks a number of times that grows with the logarithm of the way. Not measured.
inline constexpr std::int64_t kLeasePart = 2;
inline constexpr std::int64_t kLeasePartBeyondShare = 8;

// Blocks that a thread must have if it is to give up the lease of those that it frees; and how many times threads do so
// after all of them were folded for a peak. Not measured.
inline constexpr std::int64_t kBlocksToEase = 32;
inline constexpr int kEases = 64;

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
