// Where a range is made when no free one is long enough: in which hole, and at which of its ends. Pure functions over
// the indexes of one heap.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/pages/free_ranges.h"
#include "core/pages/span.h"

namespace mempool {

// The part of a hole that needs memory, so that a range is free there.
struct Growth {
  Span* hole = nullptr;  // nullptr: there is no place
  std::uintptr_t start = 0;
  std::size_t bytes = 0;
  std::size_t consumed = 0;  // bytes of whole granules in the range, those that are in their place already included
  std::size_t leftover = 0;  // bytes behind the range that are less than a granule
};

// The best place for a free range of `bytes`, together with the free ranges at the ends of a hole. `looks_at_all`: at
// every free range. Else it looks at as many as the policy says, for a better place would save a move and no memory.
Growth plan_growth(const FreeRanges& ranges, std::size_t granule, std::size_t bytes, bool looks_at_all) noexcept;

// The place for a chunk: whole granules, of a hole alone.
Growth plan_chunk(const FreeRanges& ranges, std::size_t bytes) noexcept;

}  // namespace mempool
