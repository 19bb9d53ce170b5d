// Free spans are in the right indexes, and their sums are right.
#include "check.h"
#include "core/pages/free_ranges.h"

using mempool::FreeRanges;
using mempool::kPageBytes;
using mempool::Span;

namespace {

constexpr std::size_t kGranule = 16 * kPageBytes;

Span span_of(std::uintptr_t start, std::size_t bytes, Span::State state, bool shared) {
  Span span;
  span.start = start;
  span.bytes = bytes;
  span.state = state;
  span.shared = shared;
  return span;
}

}  // namespace

TEST(a_range_is_found_in_the_index_of_its_kind_and_by_its_whole_granules) {
  FreeRanges ranges(kGranule);
  // A range of one and a half granules from the middle of a granule on: it holds one whole granule.
  Span large = span_of(kGranule / 2, kGranule + kGranule / 2, Span::State::free, false);
  Span shared = span_of(8 * kGranule, 3 * kGranule, Span::State::free, true);
  Span hole = span_of(16 * kGranule, 4 * kGranule, Span::State::hole, false);
  for (Span* span : {&large, &shared, &hole}) ranges.insert(span);
  CHECK_EQ(ranges.large().best_fit(kPageBytes), &large);
  CHECK_EQ(ranges.shared().best_fit(kPageBytes), &shared);
  CHECK_EQ(ranges.holes().best_fit(kPageBytes), &hole);
  CHECK_EQ(ranges.whole().bytes(), kGranule);
  CHECK(!ranges.whole().holds(shared));
  CHECK_EQ(ranges.largest(), shared.bytes);
  for (Span* span : {&large, &shared, &hole}) ranges.erase(span);
  CHECK_EQ(ranges.large().count() + ranges.shared().count() + ranges.holes().count() + ranges.whole().count(), 0u);
}

TEST(statistics_change_by_the_sum_of_an_operation) {
  FreeRanges ranges(kGranule);
  Span large = span_of(0, 2 * kGranule, Span::State::free, false);
  Span passing = span_of(4 * kGranule, kGranule, Span::State::free, false);
  Span hole = span_of(8 * kGranule, kGranule, Span::State::hole, false);
  ranges.insert(&large);
  ranges.insert(&passing);
  ranges.insert(&hole);
  ranges.erase(&passing);
  CHECK_EQ(ranges.stats().bytes.all.current, 0);
  ranges.settle();
  CHECK_EQ(ranges.stats().bytes.large.current, static_cast<std::int64_t>(large.bytes));
  CHECK_EQ(ranges.stats().bytes.all.peak, static_cast<std::int64_t>(large.bytes));
  CHECK_EQ(ranges.stats().count.all.current, 1);
  ranges.settle();
  CHECK_EQ(ranges.stats().count.all.current, 1);
}
