// Placement policy: the numbers that decide where pages go, how much memory one growth takes, and what is kept.
//
// Correctness depends on none of them. Each has its unit, its reason, and what measured it: "traces" are the recorded
// traces of benchmarks/fragmentation (held bytes over live bytes, and map calls), on the host's backend unless
// "device" is said.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mempool::policy {

// ---- spans -------------------------------------------------------------------------------------------------------

// Records of spans, allocated together: one call of malloc for 48 KiB of records. Not measured.
inline constexpr std::size_t kRecordsAtOnce = 256;

// Bytes of a chunk, which medium blocks and slabs share; rounded up to the granule. It is the huge page of x86 and the
// granule of CUDA, so that a chunk which becomes free can move as a whole. Not measured by itself.
inline constexpr std::size_t kChunkBytes = std::size_t{2} << 20;

// Spans that a best fit looks at in a bin whose spans differ in size. The bound makes the cost of a search constant.
// Not measured by itself.
inline constexpr int kFitLooks = 8;

// ---- the place of a growth ---------------------------------------------------------------------------------------

// Free ranges that are considered as the beginning of a longer one: the largest, and the tightest, which are just long
// enough for what a range has beyond whole granules. A place that the search passes over costs one more move and no
// memory, because free granules move. Traces.
inline constexpr int kLargestConsidered = 32;
inline constexpr int kTightestConsidered = 128;

// ---- rest: new memory for what recurs ----------------------------------------------------------------------------

// A workload that repeats itself comes to rest when ranges that it makes again in each turn get memory of their own.
// The price is held memory above the peak of allocated bytes, at most that share of the peak. Traces, and two periodic
// ones (benchmarks/fragmentation/periodic.py) that must end without a map call.
inline constexpr std::size_t kShareForRest = 20;
// The same where handles stay whole: a handle with one live block counts as needed in full, which is above the peak
// already. Traces, device.
inline constexpr std::size_t kShareForRestOfWhole = 100;
// In a small process a few blocks are more than that share. There it is bytes, up to half of the peak: inference of a
// ResNet-50 comes to rest with 214 MiB for 159 MiB live ones.
inline constexpr std::size_t kBytesForRest = std::size_t{64} << 20;

// Allocations. A turn of at least kLongTurn recurs once it was seen kTurns times. A shorter one may be a pattern inside
// of a step, such as a model's layers, and must be seen more often; below kShortestTurn nothing recurs. Periodic
// traces.
inline constexpr std::int64_t kLongTurn = 1000;
inline constexpr std::int64_t kShortestTurn = 100;
inline constexpr int kTurns = 2;
inline constexpr int kTurnsOfShort = 6;
// Sizes that are remembered, by a hash, and moments of each: 36 KiB in a heap that stitches. Not measured.
inline constexpr std::size_t kRememberedSizes = 256;
inline constexpr std::size_t kRememberedMoments = 16;

// ---- the size of handles that cannot be cut ----------------------------------------------------------------------

// Bytes. Each handle costs driver calls, so one is as large as the range that asks for it. But free memory in a handle
// that is not entirely free is stranded, so there is an end: kLargestHandle, or the kHandlesHeld-th part of what is
// held. A naive best fit on the traces holds 1.02 to 1.24 times the live bytes with handles of 128 MiB and 622 to 1,285
// calls; with 2 MiB it is 1.003 to 1.047 times and 56,000 to 121,000 calls.
inline constexpr std::size_t kLargestHandle = std::size_t{128} << 20;
inline constexpr std::size_t kHandlesHeld = 256;
// The end comes down, as far as kLeastHandle bytes, when more than the kShareStranded-th part of what is held is
// stranded. Traces, device.
inline constexpr std::size_t kLeastHandle = std::size_t{16} << 20;
inline constexpr std::size_t kShareStranded = 125;
// Handles that the rest of the device's memory makes: small ones fit wherever the last bytes are needed. Traces, on the
// smallest device that they fit on (benchmarks/cuda).
inline constexpr std::size_t kHandlesLeft = 64;
// A small range takes more than it needs, for those that follow: the kShareOfHandle-th part of what is held, at most
// the kShareOfLeft-th part of what can still be had. Traces, device.
inline constexpr std::size_t kShareOfHandle = 500;
inline constexpr std::size_t kShareOfLeft = 64;

// ---- memory that comes with its address --------------------------------------------------------------------------

// Bytes of a segment that large blocks of less than half of it share. It is what torch's native allocator takes for
// blocks of up to 10 MiB. Not measured.
inline constexpr std::size_t kLeastSegment = std::size_t{20} << 20;

// ---- tables ------------------------------------------------------------------------------------------------------

// Bytes of a commit up to which the page map's tables are made before the backend is asked, so that nothing needs to be
// undone. A backend refuses a longer range sooner than this machine has address space for its tables. Not measured.
inline constexpr std::size_t kPreparedFirst = std::size_t{64} << 30;

}  // namespace mempool::policy
