// Free spans found by size (segregated fit): bins with a bitmap, so every operation touches a fixed number of cache
// lines, however many spans there are. Up to kExactPages a bin holds one size, above it a 64th of a doubling, so what
// is found is the best fit or little more. Within a bin the span that came last is looked at first: it is the one most
// likely in the cache. Source of the two-level bitmap: M. Masmano et al., "TLSF: a New Dynamic Memory Allocator for
// Real-Time Systems", ECRTS 2004.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "common/align.h"
#include "core/pages/span.h"

namespace mempool {

class FreeIndex {
 public:
  // `links`: which of a span's IndexLinks this index uses, so that a span can be in two indexes. `granule`: 0, and a
  // span's key, the size that it is found by, is its bytes; or a power of two, and it is the whole granules in it.
  FreeIndex(unsigned links, std::size_t granule) noexcept : links_(links), granule_(granule) {}

  std::size_t key(const Span& span) const noexcept {
    if (granule_ == 0) return span.bytes;
    const std::uintptr_t low = align_up(span.start, granule_);
    const std::uintptr_t high = align_down(span.end(), granule_);
    return low < high ? high - low : 0;
  }
  bool holds(const Span& span) const noexcept { return span.links[links_].bin != 0; }

  // A span whose key is 0 is not taken in.
  void insert(Span* span) noexcept;
  // A span of this index, with the place and size that it was inserted with.
  void erase(Span* span) noexcept;

  // A span with a key of at least `bytes`, of the lowest bin that has one; nullptr only when none fits.
  Span* best_fit(std::size_t bytes) const noexcept;
  // The walk from the highest bin down. A span may be erased once its successor was asked for.
  Span* first_of_highest() const noexcept;
  Span* next_down(const Span* span) const noexcept;
  // The walk from the bin of `bytes` up.
  Span* first_from(std::size_t bytes) const noexcept;
  Span* next_up(const Span* span) const noexcept;
  std::size_t largest_key() const noexcept;

  std::size_t count() const noexcept { return count_; }
  std::size_t bytes() const noexcept { return bytes_; }  // sum of the keys

 private:
  static constexpr unsigned kExactBits = 10;
  static constexpr std::size_t kExactPages = std::size_t{1} << kExactBits;
  static constexpr unsigned kStepBits = 6;
  static constexpr unsigned kLargestBits = 36;  // pages: 48 bits of address
  static constexpr std::size_t kBins = kExactPages + 1 + ((kLargestBits - kExactBits + 1) << kStepBits);
  static constexpr std::size_t kWords = (kBins + 63) / 64;
  static_assert(kWords <= 64, "one word summarizes the others");

  static std::size_t bin_of(std::size_t key) noexcept;
  // The lowest bin that is not empty and at least `bin`, the highest that is and at most `bin`; kBins when there is
  // none.
  std::size_t bin_above(std::size_t bin) const noexcept;
  std::size_t bin_below(std::size_t bin) const noexcept;
  Span* fitting_in(std::size_t bin, std::size_t bytes, int most_looked_at) const noexcept;

  const unsigned links_;
  const std::size_t granule_;
  std::size_t count_ = 0;
  std::size_t bytes_ = 0;
  std::uint64_t summary_ = 0;
  std::array<std::uint64_t, kWords> bits_{};
  std::array<Span*, kBins> heads_{};
};

}  // namespace mempool
