// Where a range is made when no free one is long enough, and of what.
#include <climits>
#include <new>
#include <tuple>

#include "common/align.h"
#include "core/pages/page_heap.h"

namespace mempool {
namespace {

// Free ranges that are looked at as a beginning of a longer one: the largest, and those that are just long enough for
// what a range has beyond whole granules. Where memory moves, what is passed over here is not lost.
constexpr int kLargest = 32;
constexpr int kTightest = 128;

// What more than the peak of allocated bytes may be held, so that a workload which repeats itself comes to rest: that
// share of the peak. In a small process a few blocks are already more, so there it is bytes, up to half of the peak.
constexpr std::size_t kShareForRest = 20;
constexpr std::size_t kShareForRestOfWhole = 100;  // handles: what is free of one counts already
constexpr std::size_t kBytesForRest = std::size_t{64} << 20;

// New memory is taken in handles of at least that share of what is held, and at most of what can still be had.
constexpr std::size_t kShareOfHandle = 500;
constexpr std::size_t kShareOfLeft = 64;

// Where memory comes with its address: large blocks of less than half of that share it.
constexpr std::size_t kLeastSegment = std::size_t{20} << 20;

}  // namespace

bool PageHeap::grow(std::size_t bytes, bool aligned, const Supply& supply, Refusal& why) noexcept {
  if (capabilities_.reserves_memory) return grow_by_segment(bytes, aligned, supply, why);
  sweep(supply.may_wait);
  Growth growth = plan_growth(bytes, aligned);
  const Segment* const newest = segments_;
  if (growth.hole == nullptr) {
    if (!add_segment(bytes, why)) return false;
    growth = plan_growth(bytes, aligned);
  }
  // Free memory from elsewhere costs a fraction of new memory, and nothing of what is held.
  const bool moves =
      !supply.may_commit || ((!aligned || bytes > granule_) && !rests_better_on_new_memory(bytes, growth));
  if (fill(growth, moves, supply, why)) return true;
  if (segments_ != newest && is_empty(*segments_)) remove_segment(segments_);
  return false;
}

// Where memory comes with its address: a segment of its own, all of it, which small large blocks share if that can be
// had.
bool PageHeap::grow_by_segment(std::size_t bytes, bool aligned, const Supply& supply, Refusal& why) noexcept {
  if (!supply.may_commit) return false;  // that says nothing of why there is no more
  why = Refusal::backend;
  const bool is_shared = !aligned && bytes < kLeastSegment / 2;
  return (is_shared && take_segment(kLeastSegment, why)) || take_segment(align_up(bytes, granule_), why);
}

// The limit is asked first: what it refuses is not taken for a moment either.
bool PageHeap::take_segment(std::size_t bytes, Refusal& why) noexcept {
  if (!ledger_.try_hold(bytes)) {
    why = Refusal::limit;
    return false;
  }
  if (!add_segment(bytes, why)) {
    ledger_.unhold(bytes);
    return false;
  }
  Span* const hole = segments_->first;
  Filling filling{hole, hole->start, hole->start, {}};
  if (map_piece(filling, bytes, why)) return finish(filling, why);
  if (!handles_.contains(hole->start)) remove_segment(segments_);
  return false;
}

// Makes the planned range, of memory that is free elsewhere and then of new memory. When that is refused, what was new
// of it goes back at once; what has moved is free where it is now.
bool PageHeap::fill(Growth growth, bool moves, const Supply& supply, Refusal& why) noexcept {
  std::vector<FreePiece> pieces;
  try {
    if (moves || !supply.lenders.empty()) pieces = plan(growth, moves, supply);
  } catch (const std::bad_alloc&) {
    pieces.clear();  // without memory for a plan the backend is asked instead
  }
  if (pieces.empty() && supply.may_commit && fill_with_more(growth)) return true;
  Filling filling{growth.hole, growth.start, growth.start, {}};
  for (const FreePiece& piece : pieces) {
    if (!move_piece(piece, filling)) break;
  }
  const std::uintptr_t end = growth.start + growth.bytes;
  bool is_whole = filling.end >= end;
  if (!is_whole && supply.may_commit) {
    is_whole = commit_rest(filling, end - filling.end, why);
    if (!is_whole) give_back_new(filling);
  }
  return finish(filling, why) && is_whole;
}

// Where each handle costs driver calls, a small range takes more new memory than it needs, for those that follow.
// False, and nothing changed: it is no small range, or so much is not to be had.
bool PageHeap::fill_with_more(Growth growth) noexcept {
  if (capabilities_.can_cut) return false;
  const std::size_t useful = std::min(ledger_.held() / kShareOfHandle, available() / kShareOfLeft);
  const std::size_t least = handle_bytes(align_down(useful, granule_));  // one handle: all of it or nothing
  if (growth.bytes >= least || growth.hole->bytes < least) return false;
  if (growth.start + growth.bytes == growth.hole->end()) growth.start = growth.hole->end() - least;
  Filling filling{growth.hole, growth.start, growth.start, {}};
  Refusal why = Refusal::none;
  return commit_piece(filling, least, why) && finish(filling, why);
}

// Whether the same range is made again in each turn of a workload: then it gets memory of its own, within bounds, and
// the turns to come need no call at all.
bool PageHeap::rests_better_on_new_memory(std::size_t bytes, const Growth& growth) noexcept {
  if (!can_stitch() || whole_.count() == 0) return false;
  const Ledger::Moment moment = ledger_.moment();
  if (!recurrence_.missing(bytes, moment.allocations)) return false;
  const std::size_t peak = moment.peak_allocated;
  const std::size_t share = capabilities_.can_cut ? kShareForRest : kShareForRestOfWhole;
  const std::size_t for_rest = std::max(peak / share, std::min(peak / 2, kBytesForRest));
  return moment.held + growth.bytes <= peak + for_rest;
}

// How a hole, together with the free ranges at its ends, becomes a free range of `bytes`: from the end that needs less.
// Nothing when it is too short even so.
PageHeap::Growth PageHeap::growth_in(Span* hole, std::size_t bytes) const noexcept {
  const auto free_neighbour = [](const Span* span) {
    return span != nullptr && span->state == Span::State::free && !span->shared ? span : nullptr;
  };
  const Span* const before = free_neighbour(hole->previous);
  const Span* const behind = free_neighbour(hole->next);
  const std::size_t bytes_before = before != nullptr ? before->bytes : 0;
  const std::size_t bytes_behind = behind != nullptr ? behind->bytes : 0;
  if (bytes_before + hole->bytes + bytes_behind < bytes) return {};
  const std::size_t at_front = std::min(hole->bytes, align_up(bytes - bytes_before, granule_));
  const std::size_t at_back = std::min(hole->bytes, align_up(bytes - bytes_behind, granule_));
  Growth growth{hole, hole->start, at_front};
  if (at_back < at_front) growth = {hole, hole->end() - at_back, at_back};
  std::size_t joined = growth.bytes;
  growth.consumed = growth.bytes;
  for (const Span* const end : {growth.start == hole->start ? before : nullptr,
                                growth.start + growth.bytes == hole->end() ? behind : nullptr}) {
    if (end == nullptr) continue;
    joined += end->bytes;
    growth.consumed += whole_.key(*end);
  }
  growth.leftover = joined - bytes;
  growth.consumed -= align_down(growth.leftover, granule_);
  growth.leftover %= granule_;
  return growth;
}

// The best place for a free range of `bytes`: where it uses up the fewest whole granules; then where the end that is
// left over is shortest, for that is hard to use; then where the least is moved. An aligned range (a chunk, whole
// granules) is taken from a hole alone.
PageHeap::Growth PageHeap::plan_growth(std::size_t bytes, bool aligned) const noexcept {
  // From the far end, so that chunks do not stand in the way of large ranges that grow from the near one.
  if (aligned) {
    Span* const hole = holes_.best_fit(bytes);
    return hole != nullptr ? Growth{hole, hole->end() - bytes, bytes} : Growth{};
  }
  Growth best;
  const auto consider = [&](Span* hole) {
    if (hole == nullptr || hole->state != Span::State::hole) return false;
    const Growth growth = growth_in(hole, bytes);
    if (growth.hole == nullptr) return false;
    const auto cost = [](const Growth& g) { return std::make_tuple(g.consumed, g.leftover, g.bytes, g.start); };
    if (best.hole != nullptr && cost(growth) >= cost(best)) return false;
    best = growth;
    return true;
  };
  int left = can_stitch() ? kLargest : INT_MAX;
  for (Span* span = large_.first_of_highest(); span != nullptr && left > 0; span = large_.next_down(span), --left) {
    // What a range begins with is saved. Two of them around a hole are the most that the next ones can do.
    if (best.hole != nullptr && 2 * span->bytes + best.bytes < bytes) break;
    consider(span->previous);
    consider(span->next);
  }
  const std::size_t beyond = bytes % granule_;
  left = can_stitch() && beyond > 0 ? kTightest : 0;
  for (Span* span = large_.first_from(beyond); span != nullptr && left > 0; span = large_.next_up(span), --left) {
    const bool better = consider(span->previous) || consider(span->next);
    if (better && best.consumed <= bytes - beyond) break;  // the following ones leave more over
  }
  if (best.hole == nullptr) consider(holes_.best_fit(align_up(bytes, granule_)));
  return best;
}

}  // namespace mempool
