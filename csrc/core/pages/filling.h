// A range that is being made in a hole, of memory that is free elsewhere and of new memory, piece by piece. Nothing is
// accounted for before finish(), once all of it can be used: a range that cannot be had leaves no trace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/accounts/ledger.h"
#include "core/pages/growth_plan.h"
#include "core/pages/page_space.h"
#include "core/pages/refusal.h"
#include "core/pages/stitch_plan.h"

namespace mempool {

class Filling {
 public:
  // From the start of a growth on. finish() must be called, whatever else is refused.
  Filling(PageSpace& target, Ledger& ledger, const Growth& growth) noexcept
      : target_(target), ledger_(ledger), hole_(growth.hole), start_(growth.start), end_(growth.start) {}
  Filling(const Filling&) = delete;
  Filling& operator=(const Filling&) = delete;

  std::uintptr_t end() const noexcept { return end_; }

  // Maps new memory at the end, in one handle. False, and nothing changed: the device's limit or the backend refuses
  // it.
  bool commit(std::size_t bytes, Refusal& why) noexcept;
  // The same for bytes that the ledger counts as held. False: they no longer are, except for what the backend kept.
  bool commit_held(std::size_t bytes, Refusal& why) noexcept;
  // Maps free memory at the end. False: not all of it was moved.
  bool move(const FreePiece& piece) noexcept;
  // Gives the new memory at the end back. What the backend does not take stays in the range.
  void give_back_new() noexcept;

  // Accounts for what was filled: one free range. False: it cannot be used, and all is as it was before. The first
  // `bytes_to_share` bytes of new memory count as shared; it goes down by those.
  bool finish(std::size_t& bytes_to_share, Refusal& why) noexcept;

 private:
  struct Piece {
    PageSpace* source;  // nullptr: new memory
    std::uintptr_t from;
    std::uintptr_t to;
    std::size_t bytes;
    Span* near;
    StreamClock::Moment moment;
  };
  bool move_handle(PageSpace& source, std::uintptr_t from, Span* near) noexcept;
  StreamClock::Moment latest_moment() const noexcept;
  void account_for_moved(const Piece& piece, const Segment& segment) noexcept;
  void undo() noexcept;

  PageSpace& target_;
  Ledger& ledger_;
  Span* const hole_;
  const std::uintptr_t start_;
  std::uintptr_t end_;  // of what is mapped so far
  std::vector<Piece> pieces_;
};

}  // namespace mempool
