// Stitching: a range that is too short is made longer with free memory from elsewhere, moved under its addresses. Live
// blocks stay where they are, nothing is copied, and what the device holds does not grow.
#include <new>
#include <vector>

#include "common/align.h"
#include "core/page_heap.h"
#include "core/page_map.h"
#include "core/stitch_plan.h"

namespace mempool {

namespace {

// Where handles can be cut: the whole granules of each free span, straight from the index.
class IndexedPieces final : public FreePieces {
 public:
  // The ends of the range that is being made are in their place already.
  IndexedPieces(const FreeIndex& whole, std::size_t granule, const Span* not_this, const Span* nor_this)
      : whole_(whole), granule_(granule), next_(whole.first_of_highest()), not_this_(not_this), nor_this_(nor_this) {}

  bool next(FreePiece& out) override {
    while (next_ == not_this_ || next_ == nor_this_) {
      if (next_ == nullptr) return false;
      next_ = whole_.next_down(next_);
    }
    if (next_ == nullptr) return false;
    out = piece(next_);
    next_ = whole_.next_down(next_);
    return true;
  }
  bool smallest(std::size_t least, FreePiece& out) override {
    Span* const span = whole_.best_fit(least);
    if (span == nullptr || span == not_this_ || span == nor_this_) return false;
    out = piece(span);
    return true;
  }

 private:
  FreePiece piece(Span* span) const { return {align_up(span->start, granule_), whole_.key(*span), span}; }

  const FreeIndex& whole_;
  const std::size_t granule_;
  Span* next_;
  const Span* const not_this_;
  const Span* const nor_this_;
};

}  // namespace

// Where handles stay whole: every handle that is entirely free.
std::vector<FreePiece> PageHeap::whole_handles(const Span* not_this, const Span* nor_this) const {
  std::vector<FreePiece> pieces;
  for (Span* span = whole_.first_of_highest(); span != nullptr; span = whole_.next_down(span)) {
    if (span == not_this || span == nor_this) continue;
    const std::uintptr_t low = align_up(span->start, granule_);
    const std::uintptr_t high = align_down(span->end(), granule_);
    for (auto it = handles_.lower_bound(low); it != handles_.end() && it->first + it->second.bytes <= high; ++it) {
      pieces.push_back({it->first, it->second.bytes, span});
    }
  }
  return pieces;
}

std::vector<FreePiece> PageHeap::plan(const Growth& growth) const {
  // The ends of the range stay where they are; what lies at an end of the hole that is not filled is none of them.
  const Span* const before = growth.start == growth.hole->start ? growth.hole->previous : nullptr;
  const Span* const behind = growth.start + growth.bytes == growth.hole->end() ? growth.hole->next : nullptr;
  if (capabilities_.can_cut) {
    IndexedPieces pieces(whole_, granule_, before, behind);
    return plan_stitch(pieces, growth.bytes, true);
  }
  ListedPieces pieces(whole_handles(before, behind));
  return plan_stitch(pieces, growth.bytes, false);
}

// Fills `growth` from its start with memory moved from `source`. Returns what is left of it.
PageHeap::Growth PageHeap::stitch(Growth growth, PageHeap& source) noexcept {
  if (!can_stitch() || source.asleep() || source.whole_.count() == 0) return growth;
  try {
    for (const FreePiece& piece : source.plan(growth)) {
      if (!move_piece(source, piece, growth)) break;
    }
  } catch (const std::bad_alloc&) {
    return growth;  // without memory for a plan the backend is asked instead
  }
  return growth;
}

// False: not all of it was moved.
bool PageHeap::move_piece(PageHeap& source, const FreePiece& piece, Growth& growth) noexcept {
  if (!source.make_one_handle(piece)) return false;
  const std::uintptr_t end = piece.start + piece.bytes;
  for (std::uintptr_t at = piece.start; at < end;) {
    const std::size_t bytes = source.handles_.find(at)->second.bytes;
    if (!move_handle(source, at, piece.span, growth)) return false;
    at += bytes;
  }
  return true;
}

// Where handles can be cut a piece becomes one handle, so that it takes one move. Else it is one already.
bool PageHeap::make_one_handle(const FreePiece& piece) noexcept {
  const std::uintptr_t end = piece.start + piece.bytes;
  if (!cut_handle_at(piece.start) || !cut_handle_at(end)) return false;
  if (!capabilities_.can_cut) return true;
  const auto first = handles_.find(piece.start);
  for (auto next = std::next(first); next != handles_.end() && next->first < end; next = std::next(first)) {
    if (!join_with_previous(next, *piece.span->segment)) break;
  }
  return true;
}

// Moves one entirely free handle to the start of `growth`, which begins behind it afterwards. False: nothing changed.
bool PageHeap::move_handle(PageHeap& source, std::uintptr_t from, Span* near, Growth& growth) noexcept {
  if (!reserve_records(2 * kRecordsForCut) || !source.reserve_records(kRecordsForCut)) return false;
  const auto found = source.handles_.find(from);
  const std::size_t bytes = found->second.bytes;
  if (!PageMap::instance().prepare(growth.start, bytes)) return false;
  Span* const span = source.free_span_at(from, near);
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  if (!memory_.move(found->second, reinterpret_cast<void*>(growth.start))) return false;
  auto record = source.handles_.extract(found);
  record.key() = growth.start;
  const auto moved = handles_.insert(std::move(record)).position;
  join_with_previous(moved, *growth.hole->segment);
  Span* left = nullptr;
  source.make_hole(span, from, bytes, &left);
  // What was taken may have lain beside the hole: then both are one now.
  if (left->start <= growth.start && growth.start < left->end()) growth.hole = left;
  growth.hole = fill_hole(growth.hole, growth.start, bytes);
  growth.start += bytes;
  growth.bytes -= bytes;
  ledger_.count_move(bytes);
  return true;
}

Gathering PageHeap::gather() noexcept {
  Gathering result;
  const std::size_t all = whole_free_bytes();
  const std::size_t before = large_.largest_key();
  if (!can_stitch() || all <= granule_ || whole_.largest_key() == all || !reserve_records(kRecordsForOperation)) {
    return result;
  }
  Refusal why = Refusal::none;
  if (plan_growth(all, false).hole == nullptr && !add_segment(all, why)) return result;
  const Growth wanted = plan_growth(all, false);
  if (wanted.hole == nullptr) return result;
  const DeviceStats was = ledger_.read_stats();
  const Growth left = stitch(wanted, *this);
  result.moved_bytes = wanted.bytes - left.bytes;
  result.moves = static_cast<std::size_t>(ledger_.read_stats().moves - was.moves);
  const std::size_t after = large_.largest_key();
  result.regained_bytes = after > before ? after - before : 0;
  return result;
}

// The free span that holds `address`. Precondition: there is one. Mostly it is `near`, or the part behind a cut of it:
// a record may have changed hands since, but if it describes a free span around the address, that is the one.
Span* PageHeap::free_span_at(std::uintptr_t address, Span* near) const noexcept {
  const auto holds = [address](const Span* span) {
    return span->state == Span::State::free && span->start <= address && address < span->end();
  };
  if (holds(near)) return near;
  for (const Segment* segment = segments_; segment != nullptr; segment = segment->next) {
    if (address < segment->start || address >= segment->start + segment->bytes) continue;
    Span* span = segment->first;
    while (span->end() <= address) span = span->next;
    return span;
  }
  return nullptr;
}

}  // namespace mempool
