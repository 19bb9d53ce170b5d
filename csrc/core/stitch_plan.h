// Which free memory to move when a range has to be made: a pure function, so that it can be tested by itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mempool {

struct Span;

// Entirely free memory on granules. Where handles cannot be cut, one piece is one handle.
struct FreePiece {
  std::uintptr_t start = 0;
  std::size_t bytes = 0;
  Span* span = nullptr;  // where it lay when it was found; the plan only passes it on
};

// The pieces to move, in order, so that they fill at most `needed` bytes, with as few moves as will do: the smallest
// piece that covers all that is left (cut to it, where that is possible), else the largest there is. What they do not
// fill is for the caller to ask the backend for. Sorts `pieces`. May throw std::bad_alloc.
std::vector<FreePiece> plan_stitch(std::vector<FreePiece>& pieces, std::size_t needed, bool can_cut);

}  // namespace mempool
