// How a PageHeap makes a range when no free one is long enough, and of what: growth, stitching, gathering.
//
// Stitching: a range that is too short is made longer with free memory from elsewhere, moved under its addresses. Live
// blocks stay where they are, nothing is copied, and what the device holds does not grow.
#include <algorithm>
#include <new>

#include "common/align.h"
#include "core/pages/page_heap.h"
#include "core/pages/policy.h"

namespace mempool {

bool PageHeap::grow(Request& request) noexcept {
  if (space_.capabilities.backs_addresses) return grow_by_segment(request);
  space_.sweep(request.supply.may_wait);
  Growth growth = plan_growth_of(request);
  const Segment* const newest = first_segment();
  if (growth.hole == nullptr) {
    if (!space_.segments.add(request.bytes, request.why)) return false;
    growth = plan_growth_of(request);
  }
  // Free memory from elsewhere costs a fraction of new memory, and nothing of what is held.
  const bool moves = !request.supply.may_commit || !rests_better_on_new_memory(request, growth);
  if (fill(growth, moves, request)) return true;
  Segment* const first = space_.segments.first();
  if (first != newest && SegmentList::is_empty(*first)) space_.segments.remove(first);
  return false;
}

Growth PageHeap::plan_growth_of(const Request& request) const noexcept {
  return request.is_chunk ? plan_chunk(space_.free(), request.bytes)
                          : plan_growth(space_.free(), space_.granule, request.bytes, !commit_policy_.can_stitch());
}

bool PageHeap::rests_better_on_new_memory(const Request& request, const Growth& growth) noexcept {
  // A chunk of one granule would cost as many calls to move as to commit.
  if (request.is_chunk && request.bytes <= space_.granule) return true;
  if (!commit_policy_.can_stitch() || space_.free().whole().count() == 0) return false;
  return commit_policy_.rests_better_on_new_memory(request.bytes, growth.bytes);
}

// Makes the planned range, of memory that is free elsewhere and then of new memory. When that is refused, what was new
// of it goes back at once; what has moved is free where it is now.
bool PageHeap::fill(const Growth& growth, bool moves, Request& request) noexcept {
  const Supply& supply = request.supply;
  MovePlan plan{{}, growth, 0};
  try {
    if (moves || !supply.lenders.empty()) plan = plan_moves_under(growth, moves, supply);
  } catch (const std::bad_alloc&) {  // without memory for a plan the backend is asked instead
  }
  if (plan.pieces.empty() && supply.may_commit) {
    const Generosity taken = fill_generously(growth, request);
    if (taken != Generosity::none) return taken == Generosity::whole;
  }
  Filling filling(space_, ledger_, plan.growth);
  for (const FreePiece& piece : plan.pieces) {
    if (!filling.move(piece)) break;
  }
  const std::uintptr_t end = plan.growth.start + plan.growth.bytes;
  while (filling.end() < end && supply.may_commit) {
    if (filling.commit(commit_policy_.handle_bytes(end - filling.end()), request.why)) continue;
    filling.give_back_new();
    break;
  }
  const bool is_whole = filling.end() >= end;
  return filling.finish(request.bytes_to_share, request.why) && is_whole;
}

MovePlan PageHeap::plan_moves_under(const Growth& growth, bool own, const Supply& supply) {
  if (!commit_policy_.can_stitch()) return {{}, growth, 0};
  std::vector<PageSpace*> sources;
  sources.reserve(1 + supply.lenders.size());
  if (own && space_.is_movable) sources.push_back(&space_);
  for (PageHeap* const lender : supply.lenders) {
    if (!lender->asleep() && lender->space_.is_movable) sources.push_back(&lender->space_);
  }
  MovePlan plan = plan_moves(growth, space_, sources, supply.may_wait);
  commit_policy_.set_stranded(plan.stranded);
  return plan;
}

// Takes more than the range needs, for those that follow: by the user's word, or where each handle costs driver calls.
// Where so much is not to be had it goes back, and the caller takes what is needed.
PageHeap::Generosity PageHeap::fill_generously(Growth growth, Request& request) noexcept {
  std::size_t bytes = commit_policy_.generous_bytes(growth.bytes);
  if (commit_policy_.grows_by_steps()) bytes = std::min(bytes, growth.hole->bytes);
  if (bytes <= growth.bytes || growth.hole->bytes < bytes) return Generosity::none;
  if (growth.start + growth.bytes == growth.hole->end()) growth.start = growth.hole->end() - bytes;
  growth.bytes = bytes;
  Filling filling(space_, ledger_, growth);
  Refusal why = Refusal::none;
  while (filling.end() < growth.start + bytes) {
    const std::size_t left = growth.start + bytes - filling.end();
    if (filling.commit(commit_policy_.grows_by_steps() ? commit_policy_.handle_bytes(left) : left, why)) continue;
    filling.give_back_new();
    if (filling.end() == growth.start) return Generosity::none;
    // The backend would not take all of it back: it is free from now on.
    request.why = why;
    filling.finish(request.bytes_to_share, request.why);
    return Generosity::part;
  }
  return filling.finish(request.bytes_to_share, why) ? Generosity::whole : Generosity::none;
}

// ---- memory that comes with its address --------------------------------------------------------------------------

// A segment of its own, all of it, which small large blocks share if that can be had.
bool PageHeap::grow_by_segment(Request& request) noexcept {
  if (!request.supply.may_commit) return false;  // that says nothing of why there is no more
  request.why = Refusal::backend;
  const std::size_t least = align_up(request.bytes, space_.granule);
  const bool is_shared =
      !request.is_chunk && request.bytes < policy::kLeastSegment / 2 && !space_.capabilities.takes_exactly;
  if (is_shared && take_segment(policy::kLeastSegment, request)) return true;
  if (space_.capabilities.takes_exactly && request.supply.may_release) make_way(least);
  return take_segment(least, request);
}

// Gives back what is free where more would be held with `bytes` more than was ever live, and a little.
void PageHeap::make_way(std::size_t bytes) noexcept {
  const Ledger::Moment moment = ledger_.moment();
  const std::size_t most = moment.peak_allocated + moment.peak_allocated / policy::kShareAbovePeak;
  if (moment.held + bytes <= most) return;
  space_.mark();
  give_back(moment.held + bytes - most, false, may_release(), SIZE_MAX);
}

// The limit is asked first: what it refuses is not taken for a moment either.
bool PageHeap::take_segment(std::size_t bytes, Request& request) noexcept {
  if (!space_.segments.reserve_records(SegmentList::kRecordsForOperation)) {
    request.why = Refusal::metadata;
    return false;
  }
  const Refusal refusal = refusal_of(ledger_.try_hold(bytes));
  if (refusal != Refusal::none) {
    request.why = refusal;
    return false;
  }
  if (!space_.segments.add(bytes, request.why)) {
    ledger_.unhold(bytes);
    return false;
  }
  Segment* const segment = space_.segments.first();
  Filling filling(space_, ledger_, {segment->first, segment->start, bytes});
  if (filling.commit_held(bytes, request.why)) return filling.finish(request.bytes_to_share, request.why);
  if (!space_.handles.contains(segment->start)) space_.segments.remove(segment);
  return false;
}

// ---- memory ahead of demand ---------------------------------------------------------------------------------------

PageHeap::Range PageHeap::extend(std::size_t bytes, Refusal& why) noexcept {
  MEMPOOL_EXPECTS(!asleep());
  bytes = align_up(bytes, space_.granule);
  if (!space_.segments.reserve_records(SegmentList::kRecordsForOperation)) {
    why = Refusal::metadata;
    return {};
  }
  const Range range = space_.capabilities.backs_addresses ? extend_by_segment(bytes, why) : extend_hole(bytes, why);
  space_.segments.remove_empty();
  space_.segments.free().settle();
  return range;
}

PageHeap::Range PageHeap::extend_by_segment(std::size_t bytes, Refusal& why) noexcept {
  const Supply supply{.may_grow = true};
  Request request{bytes, false, supply, why, 0};
  return take_segment(bytes, request) ? Range{space_.segments.first()->start, bytes} : Range{};
}

PageHeap::Range PageHeap::extend_hole(std::size_t bytes, Refusal& why) noexcept {
  Span* hole = space_.free().holes().best_fit(bytes);
  if (hole == nullptr && space_.segments.add(bytes, why)) hole = space_.free().holes().best_fit(bytes);
  if (hole == nullptr) return {};
  const std::uintptr_t start = hole->start;
  std::size_t bytes_to_share = 0;
  Filling filling(space_, ledger_, {hole, start, bytes});
  while (filling.end() < start + bytes) {
    if (filling.commit(commit_policy_.handle_bytes(start + bytes - filling.end()), why)) continue;
    filling.give_back_new();
    break;
  }
  const std::size_t got = filling.end() - start;
  return filling.finish(bytes_to_share, why) && got > 0 ? Range{start, got} : Range{};
}

// ---- gathering ---------------------------------------------------------------------------------------------------

Gathering PageHeap::gather() noexcept {
  Gathering result;
  const std::size_t all = whole_free_bytes();
  const std::size_t before = space_.free().large().largest_key();
  if (!commit_policy_.can_stitch() || !space_.is_movable || all <= space_.granule ||
      space_.free().whole().largest_key() == all ||
      !space_.segments.reserve_records(SegmentList::kRecordsForOperation)) {
    return result;
  }
  space_.sweep(false);
  Refusal why = Refusal::none;
  const Supply supply;
  const Request request{all, false, supply, why, 0};
  Growth growth = plan_growth_of(request);
  if (growth.hole == nullptr && !space_.segments.add(all, why)) return result;
  growth = plan_growth_of(request);
  if (growth.hole == nullptr) return result;
  const DeviceStats was = ledger_.read_stats();
  try {
    const MovePlan plan = plan_moves_under(growth, true, supply);
    Filling filling(space_, ledger_, plan.growth);
    for (const FreePiece& piece : plan.pieces) {
      if (!filling.move(piece)) break;
    }
    std::size_t bytes_to_share = 0;
    filling.finish(bytes_to_share, why);
  } catch (const std::bad_alloc&) {
    return result;
  }
  space_.segments.free().settle();
  const DeviceStats is = ledger_.read_stats();
  result.moved_bytes = static_cast<std::size_t>(is.moved_bytes - was.moved_bytes);
  result.moves = static_cast<std::size_t>(is.moves - was.moves);
  const std::size_t after = space_.free().large().largest_key();
  result.regained_bytes = after > before ? after - before : 0;
  return result;
}

}  // namespace mempool
