// Where a range that has to become longer grows.
#include "backend/fake_memory.h"
#include "check.h"
#include "core/pages/growth_plan.h"
#include "core/pages/segment_list.h"

using mempool::FakeMemory;
using mempool::Growth;
using mempool::kPageBytes;
using mempool::plan_chunk;
using mempool::plan_growth;
using mempool::SegmentList;
using mempool::Span;

namespace {

constexpr std::size_t kGranule = std::size_t{2} << 20;
constexpr std::size_t kSegment = 32 * kGranule;

// One segment with free ranges at places of the test's choice; what lies between them is a hole.
struct Fixture {
  Fixture() {
    mempool::Refusal why = mempool::Refusal::none;
    CHECK(list.reserve_records(100));
    CHECK(list.add(kSegment, why));
  }
  void fill(std::size_t at, std::size_t granules) {
    list.fill(list.find(start(at), nullptr), start(at), granules * kGranule, 0);
  }
  // Makes the first `bytes` of a free range a block, so that it is free from the middle of a granule on.
  void use(std::size_t at, std::size_t bytes) {
    list.take(list.find(start(at), nullptr), start(at), bytes)->state = Span::State::block;
  }
  Growth plan(std::size_t bytes, bool looks_at_all = false) {
    return plan_growth(list.free(), kGranule, bytes, looks_at_all);
  }
  std::uintptr_t start(std::size_t at) const { return list.first()->start + at * kGranule; }

  FakeMemory memory{{.accessible = false}};
  SegmentList list{memory, nullptr, kSegment};
};

}  // namespace

TEST(without_free_ranges_a_range_begins_where_the_hole_does) {
  Fixture f;
  const Growth growth = f.plan(kGranule + kPageBytes);
  CHECK_EQ(growth.start, f.start(0));
  CHECK_EQ(growth.bytes, 2 * kGranule);
  CHECK(f.plan(kSegment + kPageBytes).hole == nullptr);
  CHECK(f.plan(kSegment).hole != nullptr);
}

TEST(a_range_grows_from_the_free_end_that_leaves_least_over) {
  for (const bool looks_at_all : {false, true}) {
    Fixture f;
    f.fill(0, 1);  // beside it a whole granule is free, which the range would use up
    f.fill(10, 1);
    f.use(10, kGranule / 2);  // half a granule is free here, and nothing whole
    const Growth growth = f.plan(kGranule + kGranule / 2, looks_at_all);
    CHECK_EQ(growth.start, f.start(11));
    CHECK_EQ(growth.bytes, kGranule);
    CHECK_EQ(growth.consumed, kGranule);
    CHECK_EQ(growth.leftover, 0u);
  }
}

TEST(a_range_grows_down_to_a_free_range_behind_the_hole) {
  Fixture f;
  f.fill(30, 2);
  f.use(31, kGranule);
  const Growth growth = f.plan(3 * kGranule);
  CHECK_EQ(growth.start + growth.bytes, f.start(30));
  CHECK_EQ(growth.bytes, 2 * kGranule);
  CHECK_EQ(growth.consumed, 3 * kGranule);
}

TEST(free_ranges_at_both_ends_of_a_hole_join) {
  Fixture f;
  f.fill(0, 14);
  f.fill(16, 16);
  const Growth growth = f.plan(kSegment);
  CHECK_EQ(growth.start, f.start(14));
  CHECK_EQ(growth.bytes, 2 * kGranule);
}

TEST(a_chunk_takes_the_far_end_of_a_hole_alone) {
  Fixture f;
  f.fill(0, 1);
  const Growth growth = plan_chunk(f.list.free(), kGranule);
  CHECK_EQ(growth.start, f.start(31));
  CHECK_EQ(growth.bytes, kGranule);
  CHECK(plan_chunk(f.list.free(), kSegment).hole == nullptr);
}
