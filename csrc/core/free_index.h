// Free spans ordered by (bytes, address): the smallest that fits, the lowest address among equals. An intrusive treap
// whose priorities are a hash of the address, so that it allocates nothing, needs no random state, and its expected
// depth is logarithmic for every order of operations.
// Source: R. Seidel, C. Aragon, "Randomized Search Trees", Algorithmica 16 (1996).
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/span.h"

namespace mempool {

class FreeIndex {
 public:
  void insert(Span* span) noexcept;
  // Precondition: the span is in the index and its start and bytes are those it was inserted with.
  void erase(Span* span) noexcept;

  // Smallest span of at least `bytes`; nullptr when none is.
  Span* best_fit(std::size_t bytes) const noexcept;
  // The neighbour of `span` in the order (which itself need not be in the index); nullptr at the end.
  Span* after(const Span& span) const noexcept;
  Span* before(const Span& span) const noexcept;
  Span* largest() const noexcept;

  std::size_t count() const noexcept { return count_; }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  Span* root_ = nullptr;
  std::size_t count_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace mempool
