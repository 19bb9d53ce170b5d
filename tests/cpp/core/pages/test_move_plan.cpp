// Which free memory moves under a range that is too short.
#include "backend/fake_memory.h"
#include "check.h"
#include "core/pages/move_plan.h"

using mempool::FakeMemory;
using mempool::Growth;
using mempool::MovePlan;
using mempool::PageSpace;
using mempool::Refusal;
using mempool::SegmentList;

namespace {

constexpr std::size_t kGranule = std::size_t{2} << 20;
constexpr std::size_t kSegment = 32 * kGranule;

// A heap with free handles of 3, 2 and 1 granules, each apart from the others, and a growth at the end of a hole.
struct Fixture {
  explicit Fixture(FakeMemory::Personality personality) : memory({.personality = personality, .accessible = false}) {
    CHECK(space.segments.reserve_records(100));
    CHECK(space.segments.add(kSegment, why));
    for (const std::size_t at : {0, 4, 8}) {
      const std::size_t bytes = (3 - at / 4) * kGranule;
      CHECK(space.handles.commit(start(at), bytes, why));
      space.segments.fill(space.segments.find(start(at), nullptr), start(at), bytes, 0);
    }
  }
  std::uintptr_t start(std::size_t at) const { return space.segments.first()->start + at * kGranule; }
  // Of `granules`, at the end of the last hole of the segment.
  MovePlan plan(std::size_t granules) {
    mempool::Span* const hole = space.segments.find(start(31), nullptr);
    const Growth growth{hole, hole->end() - granules * kGranule, granules * kGranule};
    PageSpace* const sources[] = {&space};
    return plan_moves(growth, space, sources, false);
  }

  FakeMemory memory;
  mempool::StreamClock clock{nullptr, 0};
  mempool::Ledger::Reserved reserved;
  PageSpace space{memory, clock, reserved, nullptr, kSegment, true};
  Refusal why = Refusal::none;
};

}  // namespace

TEST(where_handles_can_be_cut_pieces_fill_the_growth_to_the_byte) {
  Fixture f(FakeMemory::Personality::host);
  const MovePlan plan = f.plan(4);
  CHECK_EQ(plan.pieces.size(), 2u);
  CHECK_EQ(plan.pieces[0].start, f.start(0));
  CHECK_EQ(plan.pieces[1].start, f.start(8));
  CHECK_EQ(plan.growth.bytes, 4 * kGranule);
  CHECK_EQ(plan.stranded, 0u);
}

TEST(where_handles_stay_whole_a_growth_at_the_end_of_a_hole_gets_longer_downward) {
  Fixture f(FakeMemory::Personality::device);
  // The handle of one granule is in use in part, so only the others can move.
  f.space.segments.take(f.space.segments.find(f.start(8), nullptr), f.start(8), mempool::kPageBytes)->state =
      mempool::Span::State::block;
  const MovePlan plan = f.plan(4);
  CHECK_EQ(plan.pieces.size(), 2u);
  CHECK_EQ(plan.growth.bytes, 5 * kGranule);
  CHECK_EQ(plan.growth.start, f.start(27));
}

TEST(free_granules_of_a_handle_in_use_are_stranded_and_ends_of_the_growth_stay) {
  Fixture f(FakeMemory::Personality::device);
  f.space.segments.take(f.space.segments.find(f.start(0), nullptr), f.start(0), kGranule)->state =
      mempool::Span::State::block;
  CHECK_EQ(f.plan(8).stranded, 2 * kGranule);
  mempool::Span* const hole = f.space.segments.find(f.start(9), nullptr);
  PageSpace* const sources[] = {&f.space};
  const MovePlan plan = plan_moves({hole, hole->start, 8 * kGranule}, f.space, sources, false);
  CHECK_EQ(plan.pieces.size(), 1u);  // not the granule before the hole
  CHECK_EQ(plan.pieces[0].start, f.start(4));
}
