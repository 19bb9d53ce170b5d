// Placement policy: the numbers that decide where pages go, how much memory one growth takes, and what is kept.
//
// Correctness depends on none of them. Each has its unit, its reason, and what measured it. Measurements are the five
// recorded traces of benchmarks/fragmentation: held bytes over live bytes (geometric mean), and map calls. As they
// stand they give 1.0084 and 17,476 calls where handles can be cut ("host"); 1.0251 and 7,020 where they stay whole
// ("device"); 1.0151 and 4,520 on a device that has 1.03 times the live bytes ("short device"; four of the five fit).
// "Half" and "double" are the same with that number alone changed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mempool::policy {

// ---- spans -------------------------------------------------------------------------------------------------------

// Records of spans, allocated together, so that few growths call malloc. Not measured.
inline constexpr std::size_t kRecordsAtOnce = 256;

// Bytes of a chunk, which medium blocks and slabs share; rounded up to the granule. It is the huge page of x86 and the
// granule of CUDA, so that a chunk which becomes free can move as a whole. Double: host 1.0084, device 1.0265.
inline constexpr std::size_t kChunkBytes = std::size_t{2} << 20;

// Spans that a best fit looks at in one bin: the bound makes the cost of a search constant. Half: host 1.0087 with
// 17,822 calls. Double: host 1.0094, device 1.0248.
inline constexpr int kFitLooks = 8;

// ---- the place of a growth ---------------------------------------------------------------------------------------

// Free ranges that are considered as the beginning of a longer one: the largest, and the tightest, which are just long
// enough for what a range has beyond whole granules. A place that the search passes over costs one more move and little
// memory, because free granules move. Largest: half is host 1.0094, double 1.0089. Tightest: half is host 1.0092,
// double 1.0085 with 18,172 calls.
inline constexpr int kLargestConsidered = 32;
inline constexpr int kTightestConsidered = 128;

// ---- rest: new memory for what recurs ----------------------------------------------------------------------------

// A workload that repeats itself comes to rest when ranges that it makes again in each turn get memory of their own.
// The price is held memory above the peak of allocated bytes: at most that share of the peak. Half (a tenth of the
// peak): host 1.0190 and 16,707 calls. Double: a trace of equal training steps (periodic_train) makes 122 calls in its
// second half, and none as it stands.
inline constexpr std::size_t kShareForRest = 20;
// The same where handles stay whole: a handle with one live block counts as needed in full, so less is left for this.
// Half and double give the same figures.
inline constexpr std::size_t kShareForRestOfWhole = 100;
// Bytes, up to half of the peak, for a small process, where a few blocks are more than that share. Inference of a
// ResNet-50 comes to rest with 214 MiB for 159 MiB live. Half gives the same on all traces; double: 99 instead of 229
// calls in the second half of a small server's trace (periodic_serve).
inline constexpr std::size_t kBytesForRest = std::size_t{64} << 20;

// Allocations. A turn of at least kLongTurn recurs once it was seen kTurns times. A shorter one may be a pattern inside
// of a step, such as a model's layers, and must be seen kTurnsOfShort times; below kShortestTurn nothing recurs.
// kLongTurn: half and double change no recorded trace. kTurns: 1 is host 1.0229 and 14,503 calls, 4 changes none.
// kTurnsOfShort: half is host 1.0087, double changes none. kShortestTurn: not measured.
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
// held, if that is more. Largest: half is device 1.0224 and 8,508 calls, double 1.0268 and 5,200. Held: half is
// device 1.0262 and 6,469 calls, double 1.0247 and 6,989.
inline constexpr std::size_t kLargestHandle = std::size_t{128} << 20;
inline constexpr std::size_t kHandlesHeld = 256;
// The end comes down, as far as kLeastHandle bytes, when more than the kShareStranded-th part of what is held is
// stranded. Least: half gives the same, double is device 1.0249 and 6,056 calls. Stranded: half is device 1.0277 and
// 5,778 calls, double 1.0236 and 8,480.
inline constexpr std::size_t kLeastHandle = std::size_t{16} << 20;
inline constexpr std::size_t kShareStranded = 125;
// Handles that the rest of the device's memory makes: small ones fit wherever the last bytes are needed. Half: short
// device 1.0161 and 4,523 calls. Double: 1.0157 and 6,380.
inline constexpr std::size_t kHandlesLeft = 64;
// A small range takes more than it needs, for those that follow: the kShareOfHandle-th part of what is held, at most
// the kShareOfLeft-th part of what can still be had. Of what is held, half: device 1.0217 and 6,175 calls, but short
// device 1.0157; double: device 1.0252, short device 1.0177 and 5,024. Of what is left, half: short device 1.0154;
// double: 1.0152 and 4,619.
inline constexpr std::size_t kShareOfHandle = 500;
inline constexpr std::size_t kShareOfLeft = 64;

// ---- memory that comes with its address --------------------------------------------------------------------------

// Bytes of a segment that large blocks of less than half of it share. It is what torch's native allocator takes for
// blocks below 10 MiB. Not measured.
inline constexpr std::size_t kLeastSegment = std::size_t{20} << 20;

// Where a segment is exactly what its request needs: what is free goes back before more is held than the peak of what
// was live and this share of it. The less, the more often a workload whose sizes change takes memory anew. Not
// measured.
inline constexpr std::size_t kShareAbovePeak = 32;
// There a chunk is this share of what is held, up to so many bytes: the end of the last one is not in use yet. Not
// measured.
inline constexpr std::size_t kShareOfChunk = 64;
inline constexpr std::size_t kLargestChunk = std::size_t{32} << 20;

// ---- tables ------------------------------------------------------------------------------------------------------

// Bytes of a commit up to which the page map's tables are made before the backend is asked, so that nothing needs to be
// undone. A longer range is refused by the backend before a machine has address space for its tables. Not measured.
inline constexpr std::size_t kPreparedFirst = std::size_t{64} << 30;

}  // namespace mempool::policy
