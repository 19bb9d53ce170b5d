// Which pieces of free memory move when a range has to be made: pure functions over a list of what there is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mempool {

class PageSpace;
struct Span;

// Entirely free memory on granules. Where handles cannot be cut, one piece is one handle.
struct FreePiece {
  std::uintptr_t start = 0;
  std::size_t bytes = 0;
  Span* span = nullptr;  // where it lay when it was found; the plan only passes on this and its source
  PageSpace* source = nullptr;
};

// What there is to choose from.
class FreePieces {
 public:
  FreePieces() = default;
  FreePieces(const FreePieces&) = delete;
  FreePieces& operator=(const FreePieces&) = delete;
  virtual ~FreePieces() = default;
  // One piece after the other, large ones first. False at the end.
  virtual bool next(FreePiece& out) = 0;
  // A small piece of at least `least` bytes. False when there is none.
  virtual bool smallest(std::size_t least, FreePiece& out) = 0;
};

// The pieces to move, in order, so that they fill at most `needed` bytes, with as few moves as will do: the largest,
// and then the smallest that covers all that is left, cut to it. What they do not fill is for the caller to ask the
// backend for. May throw std::bad_alloc.
std::vector<FreePiece> plan_stitch(FreePieces& pieces, std::size_t needed);

// The same of handles that cannot be cut. The last of them may reach beyond `needed`, by `room` bytes at most.
std::vector<FreePiece> plan_stitch_of_whole(std::vector<FreePiece> pieces, std::size_t needed, std::size_t room);

}  // namespace mempool
