// The segments (reservations of address space) of one heap, and the spans that cover each of them without a gap: split,
// coalesced, found by size and by address. It touches no physical memory.
//
// Invariants, once an operation has ended:
//   - two neighbours are never both holes, nor both free with the same `shared`;
//   - holes begin and end on granules;
//   - free spans and holes are indexed in free(), and nothing else is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "core/pages/free_ranges.h"
#include "core/pages/refusal.h"
#include "core/pages/span.h"
#include "core/pages/span_records.h"
#include "core/physical_memory.h"

namespace mempool {

class SegmentList {
 public:
  // Records that one split needs at most: a new span on either side of what is taken.
  static constexpr std::size_t kRecordsForSplit = 2;
  // Records that one operation needs at most: two splits, and a new segment's hole.
  static constexpr std::size_t kRecordsForOperation = 8;

  // `segment_bytes`: of a segment, unless more is asked for.
  SegmentList(PhysicalMemory& memory, Arena* arena, std::size_t segment_bytes) noexcept
      : memory_(memory), arena_(arena), segment_bytes_(segment_bytes), free_(memory.granule_bytes()) {}
  SegmentList(const SegmentList&) = delete;
  SegmentList& operator=(const SegmentList&) = delete;
  // Segments with memory that the backend did not take back stay reserved.
  ~SegmentList();

  // Before an operation. False: there is no memory for the records.
  bool reserve_records(std::size_t spans) noexcept { return records_.reserve(spans); }

  // ---- segments
  // Reserves address space with one hole in it, at least `bytes`, as the new first segment. False: `why` says why not.
  // Needs a record.
  bool add(std::size_t bytes, Refusal& why) noexcept;
  // Gives an empty segment back.
  void remove(Segment* segment) noexcept;
  void remove_empty() noexcept;
  static bool is_empty(const Segment& segment) noexcept {
    return segment.first->state == Span::State::hole && segment.first->next == nullptr;
  }
  Segment* first() const noexcept { return first_; }

  // ---- spans
  // Takes [start, start + bytes) out of an indexed span. What lies before and behind keeps its state and is indexed;
  // the part is in no index. Needs kRecordsForSplit.
  Span* take(Span* span, std::uintptr_t start, std::size_t bytes) noexcept;
  // Coalesces a free span or a hole that is in no index with its neighbours, and indexes the result.
  Span* put(Span* span) noexcept;
  // A part of a hole has memory now, which work on the device may use until `moment`: a free range. Needs
  // kRecordsForSplit.
  void fill(Span* hole, std::uintptr_t start, std::size_t bytes, std::uint64_t moment) noexcept;
  // A part of an indexed free span has no memory any more: a hole. Returns what is left of the span before it, or
  // nullptr. Needs kRecordsForSplit.
  Span* make_hole(Span* span, std::uintptr_t start, std::size_t bytes) noexcept;
  // The same, but the part is stale, and in no index; returns it.
  Span* make_stale(Span* span, std::uintptr_t start, std::size_t bytes) noexcept;

  // The span that holds `address`, or nullptr. For the caller it is mostly `near` (which may be nullptr), or the part
  // behind a split of it: that record may have changed hands since, but where it describes a free span around the
  // address it is the one.
  Span* find(std::uintptr_t address, Span* near) const noexcept;

  // ---- reading
  const FreeRanges& free() const noexcept { return free_; }
  FreeRanges& free() noexcept { return free_; }
  std::size_t backed_bytes() const noexcept { return backed_bytes_; }
  // Contiguous backed ranges, counted.
  int backed_ranges() const noexcept;
  // How many more there are than at the last call.
  int take_range_changes() noexcept { return std::exchange(range_changes_, 0); }

 private:
  static bool can_coalesce(const Span* a, const Span* b) noexcept;
  Span* coalesce(Span* span) noexcept;
  Span* split(Span* span, std::size_t bytes) noexcept;
  Span* vacate(Span* span, std::uintptr_t start, std::size_t bytes, Span::State state) noexcept;

  PhysicalMemory& memory_;
  Arena* const arena_;
  const std::size_t segment_bytes_;
  SpanRecords records_;
  FreeRanges free_;
  Segment* first_ = nullptr;
  std::size_t backed_bytes_ = 0;
  int range_changes_ = 0;
};

}  // namespace mempool
