#include "core/pages/move_plan.h"

#include <utility>

#include "common/align.h"

namespace mempool {
namespace {

// The free ranges at the ends of a growth: they are in their place already.
struct Ends {
  const Span* before = nullptr;
  const Span* behind = nullptr;

  // A free range at that end of the hole which is not filled is free to move.
  explicit Ends(const Growth& growth)
      : before(growth.start == growth.hole->start ? growth.hole->previous : nullptr),
        behind(growth.start + growth.bytes == growth.hole->end() ? growth.hole->next : nullptr) {}
  bool include(const Span* span) const { return span == before || span == behind; }
};

// Where handles can be cut: the whole granules of each free span, straight from the index.
class IndexedPieces final : public FreePieces {
 public:
  IndexedPieces(PageSpace& source, const Ends& ends)
      : source_(source), whole_(source.free().whole()), next_(whole_.first_of_highest()), ends_(ends) {}

  bool next(FreePiece& out) override {
    while (next_ != nullptr && ends_.include(next_)) next_ = whole_.next_down(next_);
    if (next_ == nullptr) return false;
    out = piece(next_);
    next_ = whole_.next_down(next_);
    return true;
  }
  bool smallest(std::size_t least, FreePiece& out) override {
    Span* const span = whole_.best_fit(least);
    if (span == nullptr || ends_.include(span)) return false;
    out = piece(span);
    return true;
  }

 private:
  FreePiece piece(Span* span) const {
    return {align_up(span->start, source_.granule), whole_.key(*span), span, &source_};
  }

  PageSpace& source_;
  const FreeIndex& whole_;
  Span* next_;
  const Ends& ends_;
};

// Where handles stay whole: every handle that is entirely free. Returns the bytes that are free beside them, stranded
// in handles of which a part is in use.
std::size_t add_whole_handles(PageSpace& source, const Ends& ends, const PageSpace& target, bool may_wait,
                              std::vector<FreePiece>& out) {
  std::size_t stranded = 0;
  const FreeIndex& whole = source.free().whole();
  for (Span* span = whole.first_of_highest(); span != nullptr; span = whole.next_down(span)) {
    if (ends.include(span) || !source.may_lend(span->moment, target, may_wait)) continue;
    stranded += whole.key(*span);
    const std::uintptr_t low = align_up(span->start, source.granule);
    const std::uintptr_t high = align_down(span->end(), source.granule);
    source.handles.for_each_within(low, high, [&](std::uintptr_t start, std::size_t bytes) {
      stranded -= bytes;
      out.push_back({start, bytes, span, &source});
    });
  }
  return stranded;
}

std::size_t sum_of(const std::vector<FreePiece>& pieces) {
  std::size_t sum = 0;
  for (const FreePiece& piece : pieces) sum += piece.bytes;
  return sum;
}

}  // namespace

MovePlan plan_moves(const Growth& growth, const PageSpace& target, std::span<PageSpace* const> sources, bool may_wait) {
  MovePlan plan{{}, growth, 0};
  const Ends ends(growth);
  std::vector<FreePiece> whole_handles;
  std::size_t left = growth.bytes;
  for (PageSpace* const source : sources) {
    if (source != &target) {
      source->mark();
      source->clock.poll();
    }
    if (!target.capabilities.can_cut) {
      plan.stranded += add_whole_handles(*source, ends, target, may_wait, whole_handles);
    } else if (left > 0 && source->free().whole().count() > 0) {
      IndexedPieces pieces(*source, ends);
      for (const FreePiece& piece : plan_stitch(pieces, left)) {
        plan.pieces.push_back(piece);
        left -= piece.bytes;
      }
    }
  }
  if (target.capabilities.can_cut) return plan;
  plan.pieces = plan_stitch_of_whole(std::move(whole_handles), growth.bytes, growth.hole->bytes - growth.bytes);
  if (const std::size_t sum = sum_of(plan.pieces); sum > growth.bytes) {
    const bool to_end = growth.start + growth.bytes == growth.hole->end();
    if (to_end) plan.growth.start -= sum - growth.bytes;
    plan.growth.bytes = sum;
  }
  return plan;
}

}  // namespace mempool
