#include "core/pages/growth_plan.h"

#include <algorithm>
#include <climits>
#include <tuple>

#include "common/align.h"
#include "core/pages/policy.h"

namespace mempool {
namespace {

// How a hole, together with the free ranges at its ends, becomes a free range of `bytes`: from the end that needs less.
// Nothing when it is too short even so.
Growth growth_in(const FreeRanges& ranges, std::size_t granule, Span* hole, std::size_t bytes) {
  const auto free_neighbour = [](const Span* span) {
    return span != nullptr && span->state == Span::State::free && !span->shared ? span : nullptr;
  };
  const Span* const before = free_neighbour(hole->previous);
  const Span* const behind = free_neighbour(hole->next);
  const std::size_t bytes_before = before != nullptr ? before->bytes : 0;
  const std::size_t bytes_behind = behind != nullptr ? behind->bytes : 0;
  if (bytes_before + hole->bytes + bytes_behind < bytes) return {};
  const std::size_t at_front = std::min(hole->bytes, align_up(bytes - bytes_before, granule));
  const std::size_t at_back = std::min(hole->bytes, align_up(bytes - bytes_behind, granule));
  Growth growth{hole, hole->start, at_front};
  if (at_back < at_front) growth = {hole, hole->end() - at_back, at_back};
  std::size_t joined = growth.bytes;
  growth.consumed = growth.bytes;
  for (const Span* const end : {growth.start == hole->start ? before : nullptr,
                                growth.start + growth.bytes == hole->end() ? behind : nullptr}) {
    if (end == nullptr) continue;
    joined += end->bytes;
    growth.consumed += ranges.whole().key(*end);
  }
  growth.leftover = joined - bytes;
  growth.consumed -= align_down(growth.leftover, granule);
  growth.leftover %= granule;
  return growth;
}

}  // namespace

// The place that uses up the fewest whole granules; then that whose left over end is shortest, for it is hard to use;
// then that where the least is moved.
Growth plan_growth(const FreeRanges& ranges, std::size_t granule, std::size_t bytes, bool looks_at_all) noexcept {
  Growth best;
  const auto consider = [&](Span* hole) {
    if (hole == nullptr || hole->state != Span::State::hole) return false;
    const Growth growth = growth_in(ranges, granule, hole, bytes);
    if (growth.hole == nullptr) return false;
    const auto cost = [](const Growth& g) { return std::make_tuple(g.consumed, g.leftover, g.bytes, g.start); };
    if (best.hole != nullptr && cost(growth) >= cost(best)) return false;
    best = growth;
    return true;
  };
  const FreeIndex& large = ranges.large();
  int left = looks_at_all ? INT_MAX : policy::kLargestConsidered;
  for (Span* span = large.first_of_highest(); span != nullptr && left > 0; span = large.next_down(span), --left) {
    // What a range begins with is saved. The most that the next ranges can do is to stand at both ends of a hole.
    if (best.hole != nullptr && 2 * span->bytes + best.bytes < bytes) break;
    consider(span->previous);
    consider(span->next);
  }
  const std::size_t beyond = bytes % granule;
  left = looks_at_all || beyond == 0 ? 0 : policy::kTightestConsidered;
  for (Span* span = large.first_from(beyond); span != nullptr && left > 0; span = large.next_up(span), --left) {
    const bool better = consider(span->previous) || consider(span->next);
    if (better && best.consumed <= bytes - beyond) break;  // the following ones leave more over
  }
  if (best.hole == nullptr) consider(ranges.holes().best_fit(align_up(bytes, granule)));
  return best;
}

// From the far end, so that chunks do not stand in the way of large ranges that grow from the near one.
Growth plan_chunk(const FreeRanges& ranges, std::size_t bytes) noexcept {
  Span* const hole = ranges.holes().best_fit(bytes);
  return hole != nullptr ? Growth{hole, hole->end() - bytes, bytes} : Growth{};
}

}  // namespace mempool
