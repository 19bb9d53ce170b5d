// Segments are covered by spans without a gap, which split and coalesce.
#include <algorithm>
#include <random>
#include <vector>

#include "backend/fake_memory.h"
#include "check.h"
#include "common/align.h"
#include "core/pages/segment_list.h"

using mempool::FakeMemory;
using mempool::kPageBytes;
using mempool::Refusal;
using mempool::Segment;
using mempool::SegmentList;
using mempool::Span;

namespace {

constexpr std::size_t kGranule = std::size_t{2} << 20;
constexpr std::size_t kSegment = 16 * kGranule;

struct Fixture {
  FakeMemory memory{{.accessible = false}};
  SegmentList list{memory, nullptr, kSegment};
  Refusal why = Refusal::none;

  Segment& add(std::size_t bytes) {
    CHECK(list.reserve_records(SegmentList::kRecordsForOperation));
    CHECK(list.add(bytes, why));
    return *list.first();
  }
};

// The invariants of the header, by a walk over all spans.
void check_spans(const SegmentList& list) {
  std::size_t backed = 0;
  std::size_t holes = 0;
  std::size_t free = 0;
  for (const Segment* segment = list.first(); segment != nullptr; segment = segment->next) {
    std::uintptr_t at = segment->start;
    for (const Span* span = segment->first; span != nullptr; span = span->next) {
      CHECK_EQ(span->start, at);
      at = span->end();
      CHECK(span->previous == nullptr || span->previous->next == span);
      const bool equal =
          span->previous != nullptr && span->previous->state == span->state && span->previous->shared == span->shared;
      CHECK(!equal || (span->state != Span::State::hole && span->state != Span::State::free));
      backed += span->is_backed() ? span->bytes : 0;
      holes += span->state == Span::State::hole ? span->bytes : 0;
      free += span->state == Span::State::free ? span->bytes : 0;
    }
    CHECK_EQ(at, segment->start + segment->bytes);
  }
  CHECK_EQ(list.backed_bytes(), backed);
  CHECK_EQ(list.free().holes().bytes(), holes);
  CHECK_EQ(list.free().large().bytes() + list.free().shared().bytes(), free);
}

}  // namespace

TEST(a_segment_begins_as_one_hole_of_at_least_what_is_asked) {
  Fixture f;
  const Segment& segment = f.add(3 * kGranule);
  CHECK_EQ(segment.bytes, kSegment);
  CHECK(SegmentList::is_empty(segment));
  CHECK_EQ(f.add(kSegment + kPageBytes).bytes, kSegment + kGranule);
  check_spans(f.list);
  f.list.remove_empty();
  CHECK(f.list.first() == nullptr);
  CHECK_EQ(f.memory.reserved_bytes(), 0u);
}

TEST(where_address_space_is_short_a_segment_is_no_longer_than_needed) {
  Fixture f;
  CHECK(f.list.reserve_records(SegmentList::kRecordsForOperation));
  f.memory.fail_call(1);
  CHECK(f.list.add(3 * kGranule, f.why));
  CHECK_EQ(f.list.first()->bytes, 3 * kGranule);
  f.memory.fail_call(1);
  CHECK(!f.list.add(kSegment, f.why));  // that is the least already
  CHECK(f.why == Refusal::backend);
  f.list.remove_empty();
}

TEST(ranges_split_and_coalesce_and_contiguous_ones_are_counted) {
  Fixture f;
  Segment& segment = f.add(kSegment);
  f.list.fill(segment.first, segment.start, 2 * kGranule, 7);
  CHECK_EQ(f.list.take_range_changes(), 1);
  f.list.fill(segment.first->next, segment.start + 4 * kGranule, 2 * kGranule, 0);
  CHECK_EQ(f.list.take_range_changes(), 1);
  // Between both: three free ranges become one, and the latest moment holds for all.
  f.list.fill(segment.first->next, segment.start + 2 * kGranule, 2 * kGranule, 9);
  CHECK_EQ(f.list.take_range_changes(), -1);
  CHECK_EQ(f.list.backed_ranges(), 1);
  CHECK_EQ(segment.first->bytes, 6 * kGranule);
  CHECK_EQ(segment.first->moment, 9u);
  check_spans(f.list);

  Span* const block = f.list.take(segment.first, segment.start + kPageBytes, kPageBytes);
  block->state = Span::State::block;
  check_spans(f.list);
  CHECK_EQ(f.list.find(block->start, nullptr), block);
  CHECK_EQ(f.list.find(block->end(), segment.first), block->next);  // what is near does not hold it
  CHECK_EQ(f.list.find(segment.start, segment.first), segment.first);
  CHECK(f.list.find(segment.start + segment.bytes, nullptr) == nullptr);

  block->state = Span::State::free;
  CHECK_EQ(f.list.put(block)->bytes, 6 * kGranule);
  Span* const before = f.list.make_hole(segment.first, segment.start + kGranule, kGranule);
  CHECK_EQ(before, segment.first);
  CHECK_EQ(before->bytes, kGranule);
  CHECK_EQ(f.list.take_range_changes(), 1);
  check_spans(f.list);
}

TEST(shared_and_other_free_ranges_stay_apart) {
  Fixture f;
  Segment& segment = f.add(kSegment);
  f.list.fill(segment.first, segment.start, 3 * kGranule, 0);
  Span* const middle = f.list.take(segment.first, segment.start + kGranule, kGranule);
  middle->shared = true;
  CHECK_EQ(f.list.put(middle)->bytes, kGranule);
  CHECK_EQ(f.list.free().shared().bytes(), kGranule);
  CHECK_EQ(f.list.free().large().count(), 2u);
  check_spans(f.list);
}

TEST(a_stale_range_coalesces_with_nothing_until_it_is_a_hole) {
  Fixture f;
  Segment& segment = f.add(kSegment);
  f.list.fill(segment.first, segment.start, 2 * kGranule, 0);
  Span* const stale = f.list.make_stale(segment.first, segment.start + kGranule, kGranule);
  CHECK(stale->state == Span::State::stale);
  CHECK_EQ(f.list.backed_bytes(), kGranule);
  CHECK(stale->next->state == Span::State::hole);
  check_spans(f.list);
  stale->state = Span::State::hole;
  f.list.put(stale);
  CHECK_EQ(segment.first->next->bytes, kSegment - kGranule);
  check_spans(f.list);
}

TEST(any_sequence_of_changes_keeps_the_spans_whole) {
  Fixture f;
  Segment& segment = f.add(kSegment);
  std::mt19937 random(5);
  std::vector<Span*> blocks;
  int ranges = 0;
  for (int i = 0; i < 4000; ++i) {
    CHECK(f.list.reserve_records(SegmentList::kRecordsForOperation));
    Span* span = f.list.find(segment.start + random() % (kSegment / kPageBytes) * kPageBytes, nullptr);
    const std::size_t granules = span->bytes / kGranule;
    if (span->state == Span::State::hole) {
      f.list.fill(span, span->start + random() % granules * kGranule, kGranule, 0);
    } else if (span->state == Span::State::free && !span->shared && random() % 4 == 0) {
      const std::uintptr_t start = mempool::align_up(span->start, kGranule);
      if (start + kGranule <= span->end()) f.list.make_hole(span, start, kGranule);
    } else if (span->state == Span::State::free) {
      const std::size_t pages = span->bytes / kPageBytes;
      const std::size_t skipped = random() % pages;
      Span* const block =
          f.list.take(span, span->start + skipped * kPageBytes, (1 + random() % (pages - skipped)) * kPageBytes);
      block->state = Span::State::block;
      block->shared = random() % 2 == 0;
      blocks.push_back(block);
    } else {
      const auto found = std::find(blocks.begin(), blocks.end(), span);
      CHECK(found != blocks.end());
      blocks.erase(found);
      span->state = Span::State::free;
      f.list.put(span);
    }
    ranges += f.list.take_range_changes();
    CHECK_EQ(f.list.backed_ranges(), ranges);
    check_spans(f.list);
  }
  CHECK(ranges > 0);
}
