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

// Pieces that lie in a vector.
class ListedPieces final : public FreePieces {
 public:
  explicit ListedPieces(std::vector<FreePiece> pieces);
  bool next(FreePiece& out) override;
  bool smallest(std::size_t least, FreePiece& out) override;

 private:
  std::vector<FreePiece> pieces_;  // large ones first
  std::size_t next_ = 0;
};

// The pieces to move, in order, so that they fill at most `needed` bytes, with as few moves as will do: the largest,
// and then the smallest that covers all that is left, cut to it. Where handles cannot be cut: each that is not more
// than what is left. What they do not fill is for the caller to ask the backend for. May throw std::bad_alloc.
std::vector<FreePiece> plan_stitch(FreePieces& pieces, std::size_t needed, bool can_cut);

}  // namespace mempool
