// Stitching: a range that is too short is made longer with free memory from elsewhere, moved under its addresses. Live
// blocks stay where they are, nothing is copied, and what the device holds does not grow.
#include <algorithm>
#include <iterator>
#include <new>
#include <utility>
#include <vector>

#include "common/align.h"
#include "core/pages/page_heap.h"
#include "core/pages/page_map.h"
#include "core/pages/stitch_plan.h"

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
  FreePiece piece(Span* span) const { return {align_up(span->start, granule_), whole_.key(*span), span, nullptr}; }

  const FreeIndex& whole_;
  const std::size_t granule_;
  Span* next_;
  const Span* const not_this_;
  const Span* const nor_this_;
};

}  // namespace

bool PageHeap::may_lend(StreamClock::Moment moment, const PageHeap& receiver, bool may_wait) noexcept {
  // What comes later on the same stream comes after the work that still uses it. A graph will run on any stream.
  if ((&receiver.clock_ == &clock_ && receiver.movable_) || clock_.has_passed(moment)) return true;
  return may_wait && clock_.wait(moment);
}

// Where handles stay whole: every handle that is entirely free. Returns the bytes that are free beside them, stranded
// in handles of which a part is in use.
std::size_t PageHeap::add_whole_handles(const Span* not_this, const Span* nor_this, const PageHeap& receiver,
                                        bool may_wait, std::vector<FreePiece>& out) {
  std::size_t stranded = 0;
  for (Span* span = whole_.first_of_highest(); span != nullptr; span = whole_.next_down(span)) {
    if (span == not_this || span == nor_this || !may_lend(span->moment, receiver, may_wait)) continue;
    const std::uintptr_t low = align_up(span->start, granule_);
    const std::uintptr_t high = align_down(span->end(), granule_);
    stranded += whole_.key(*span);
    for (auto it = handles_.lower_bound(low); it != handles_.end() && it->first + it->second.bytes <= high; ++it) {
      stranded -= it->second.bytes;
      out.push_back({it->first, it->second.bytes, span, this});
    }
  }
  return stranded;
}

// What to move under `growth`: of this heap's memory if `own`, and of the lenders'. Where the last handle reaches
// beyond the range, the range becomes longer.
std::vector<FreePiece> PageHeap::plan(Growth& growth, bool own, const Supply& supply) {
  std::vector<FreePiece> chosen;
  if (!can_stitch()) return chosen;
  // The ends of the range stay where they are; what lies at an end of the hole that is not filled is none of them.
  const bool from_front = growth.start == growth.hole->start;
  const bool to_end = growth.start + growth.bytes == growth.hole->end();
  const Span* const before = from_front ? growth.hole->previous : nullptr;
  const Span* const behind = to_end ? growth.hole->next : nullptr;
  const auto for_each_source = [&](auto action) {
    if (own && movable_) action(*this);
    for (PageHeap* const lender : supply.lenders) {
      if (lender->asleep() || !lender->movable_) continue;
      lender->mark();
      lender->clock_.poll();
      action(*lender);
    }
  };
  if (!capabilities_.can_cut) {
    std::vector<FreePiece> pieces;
    stranded_ = 0;
    for_each_source([&](PageHeap& source) {
      stranded_ += source.add_whole_handles(before, behind, *this, supply.may_wait, pieces);
    });
    chosen = plan_stitch_of_whole(std::move(pieces), growth.bytes, growth.hole->bytes - growth.bytes);
    std::size_t sum = 0;
    for (const FreePiece& piece : chosen) sum += piece.bytes;
    if (sum > growth.bytes) {
      if (to_end) growth.start -= sum - growth.bytes;
      growth.bytes = sum;
    }
    return chosen;
  }
  std::size_t left = growth.bytes;
  for_each_source([&](PageHeap& source) {
    if (left == 0 || source.whole_.count() == 0) return;
    IndexedPieces pieces(source.whole_, granule_, before, behind);
    for (FreePiece piece : plan_stitch(pieces, left)) {
      piece.heap = &source;
      chosen.push_back(piece);
      left -= piece.bytes;
    }
  });
  return chosen;
}

// False: not all of it was moved.
bool PageHeap::move_piece(const FreePiece& piece, Filling& filling) noexcept {
  PageHeap& source = *piece.heap;
  if (!source.make_one_handle(piece)) return false;
  const std::uintptr_t end = piece.start + piece.bytes;
  for (std::uintptr_t at = piece.start; at < end;) {
    const std::size_t bytes = source.handles_.find(at)->second.bytes;
    if (!move_handle(source, at, piece.span, filling)) return false;
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

// Maps one entirely free handle at the end of what is filled. False: nothing changed.
bool PageHeap::move_handle(PageHeap& source, std::uintptr_t from, Span* near, Filling& filling) noexcept {
  const std::size_t pieces = filling.pieces.size() + 1;
  if (!reserve_records(pieces * kRecordsForCut + kRecordsForOperation)) return false;
  if (!source.reserve_records(pieces * kRecordsForCut)) return false;
  const auto found = source.handles_.find(from);
  const std::size_t bytes = found->second.bytes;
  if (!PageMap::instance().prepare(filling.end, bytes)) return false;
  Span* const span = source.free_span_at(from, near);
  try {
    filling.pieces.reserve(pieces);
    if (capabilities_.can_alias) source.stale_.try_emplace(from, nullptr);
  } catch (const std::bad_alloc&) {
    return false;
  }
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  if (!memory_.move(found->second, reinterpret_cast<void*>(filling.end))) {
    source.stale_.erase(from);
    return false;
  }
  filling.pieces.push_back({&source, from, filling.end, bytes, near, span->moment});
  filling.end += bytes;
  return true;
}

// Accounts for what was filled: one free range. False: it cannot be used, and all is as it was before.
bool PageHeap::finish(Filling& filling, Refusal& why) noexcept {
  if (filling.end == filling.start) return true;
  const std::size_t bytes = filling.end - filling.start;
  if (!memory_.open(reinterpret_cast<void*>(filling.start), bytes)) {  // NOLINT(performance-no-int-to-ptr)
    undo(filling);
    why = Refusal::backend;
    return false;
  }
  StreamClock::Moment moment = StreamClock::kAlways;
  for (const Filling::Piece& piece : filling.pieces) {
    // Of another stream only what is idle has come.
    if (piece.source != nullptr && &piece.source->clock_ == &clock_) moment = std::max(moment, piece.moment);
  }
  const Segment& segment = *filling.hole->segment;
  int ranges = 0;
  counting_ranges_ = &ranges;
  fill_hole(filling.hole, filling.start, bytes, moment);
  for (const Filling::Piece& piece : filling.pieces) {
    if (piece.source == nullptr) {
      count_commit(piece.bytes);
    } else {
      auto record = piece.source->handles_.extract(piece.from);
      record.key() = piece.to;
      const auto moved = handles_.insert(std::move(record)).position;
      join_with_previous(moved, segment);
      piece.source->counting_ranges_ = &ranges;
      piece.source->leave(piece.source->free_span_at(piece.from, piece.near), piece.from, piece.bytes);
      if (piece.source != this) {
        piece.source->counting_ranges_ = nullptr;
        piece.source->settle_ranges();
      }
      ledger_.count_move(piece.bytes);
    }
  }
  counting_ranges_ = nullptr;
  if (ranges != 0) ledger_.count_ranges(ranges);
  return true;
}

// New memory goes back, moved memory to where it was.
void PageHeap::undo(Filling& filling) noexcept {
  for (const Filling::Piece& piece : filling.pieces) {
    const bool is_new = piece.source == nullptr;
    const auto record = is_new ? handles_.find(piece.to) : piece.source->handles_.find(piece.from);
    if (is_new) {
      if (!memory_.decommit(record->second)) continue;
      handles_.erase(record);
      ledger_.unhold(piece.bytes);
    } else {
      memory_.move_back(record->second, reinterpret_cast<void*>(piece.from));  // NOLINT(performance-no-int-to-ptr)
      piece.source->stale_.erase(piece.from);
    }
  }
}

// The memory of a part of a free span has moved away.
void PageHeap::leave(Span* span, std::uintptr_t start, std::size_t bytes) noexcept {
  if (!capabilities_.can_alias) {
    make_hole(span, start, bytes);
    return;
  }
  Span* const stale = cut_hole(span, start, bytes, Span::State::stale);
  stale_.find(start)->second = stale;
}

// Ends what moves have left behind, as far as work on the device allows: neighbours in one call.
void PageHeap::sweep(bool may_wait) noexcept {
  if (stale_.empty()) return;
  mark();
  clock_.poll();
  for (auto it = stale_.begin(); it != stale_.end();) {
    const auto has_passed = [&](const Span& span) {
      return clock_.has_passed(span.moment) || (may_wait && clock_.wait(span.moment));
    };
    Span* const first = it->second;
    if (!has_passed(*first)) {
      ++it;
      continue;
    }
    auto last = it;
    std::size_t bytes = first->bytes;
    for (auto next = std::next(it); next != stale_.end() && next->second == last->second->next; ++next) {
      if (!has_passed(*next->second)) break;
      bytes += next->second->bytes;
      last = next;
    }
    const auto end = std::next(last);
    if (!memory_.unmap(first->address(), bytes)) {
      it = end;
      continue;
    }
    for (; it != end; it = stale_.erase(it)) {
      it->second->state = Span::State::hole;
      index(merge(it->second));
    }
  }
}

Gathering PageHeap::gather() noexcept {
  Gathering result;
  const std::size_t all = whole_free_bytes();
  const std::size_t before = large_.largest_key();
  if (!can_stitch() || !movable_ || all <= granule_ || whole_.largest_key() == all ||
      !reserve_records(kRecordsForOperation)) {
    return result;
  }
  sweep(false);
  Refusal why = Refusal::none;
  if (plan_growth(all, false).hole == nullptr && !add_segment(all, why)) return result;
  Growth wanted = plan_growth(all, false);
  if (wanted.hole == nullptr) return result;
  const DeviceStats was = ledger_.read_stats();
  try {
    const std::vector<FreePiece> pieces = plan(wanted, true, {});
    Filling filling{wanted.hole, wanted.start, wanted.start, {}};
    for (const FreePiece& piece : pieces) {
      if (!move_piece(piece, filling)) break;
    }
    finish(filling, why);
    settle_ranges();
  } catch (const std::bad_alloc&) {
    return result;
  }
  const DeviceStats is = ledger_.read_stats();
  result.moved_bytes = static_cast<std::size_t>(is.moved_bytes - was.moved_bytes);
  result.moves = static_cast<std::size_t>(is.moves - was.moves);
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
  if (near != nullptr && holds(near)) return near;
  for (const Segment* segment = segments_; segment != nullptr; segment = segment->next) {
    if (address < segment->start || address >= segment->start + segment->bytes) continue;
    Span* span = segment->first;
    while (span->end() <= address) span = span->next;
    return span;
  }
  return nullptr;
}

}  // namespace mempool
