// What is free in one heap, found by size: free spans of large and of shared granules, and holes. It keeps the
// statistics of the free spans, too.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include "core/accounts/stats.h"
#include "core/pages/free_index.h"
#include "core/pages/span.h"

namespace mempool {

class FreeRanges {
 public:
  explicit FreeRanges(std::size_t granule) noexcept : whole_(1, granule) {}

  // A span in state `free` or `hole`.
  void insert(Span* span) noexcept;
  // With the place, size and state that it was inserted with.
  void erase(Span* span) noexcept;

  const FreeIndex& large() const noexcept { return large_; }    // free spans that are not shared
  const FreeIndex& shared() const noexcept { return shared_; }  // free spans of shared granules
  const FreeIndex& holes() const noexcept { return holes_; }
  // The spans of large() that hold whole granules, by the bytes of these.
  const FreeIndex& whole() const noexcept { return whole_; }
  std::size_t largest() const noexcept { return std::max(large_.largest_key(), shared_.largest_key()); }

  // Ends an operation: the statistics change by its sum, so a range that was free within it alone is in no figure.
  void settle() noexcept { stats_.apply(std::exchange(changes_, {})); }
  FreeRangeStats& stats() noexcept { return stats_; }
  const FreeRangeStats& stats() const noexcept { return stats_; }

 private:
  FreeIndex& index_of(const Span& span) noexcept { return span.shared ? shared_ : large_; }

  FreeIndex large_{0, 0};
  FreeIndex shared_{0, 0};
  FreeIndex holes_{0, 0};
  FreeIndex whole_;
  FreeRangeStats stats_;
  FreeRangeStats::Changes changes_;  // of the operation that is under way
};

}  // namespace mempool
