// A place for a longer range is filled with moved and new memory, or nothing changes.
#include "backend/fake_memory.h"
#include "check.h"
#include "core/pages/filling.h"
#include "core/pages/move_plan.h"

using mempool::AccountRegistry;
using mempool::FakeMemory;
using mempool::Filling;
using mempool::Growth;
using mempool::Ledger;
using mempool::PageSpace;
using mempool::Refusal;
using mempool::StreamClock;

namespace {

constexpr std::size_t kGranule = std::size_t{2} << 20;
constexpr std::size_t kSegment = 32 * kGranule;

// Two heaps of one device.
struct Fixture {
  explicit Fixture(FakeMemory::Personality personality) : memory({.personality = personality, .accessible = false}) {}

  // A place of `granules` granules in a hole of `space`, at its beginning.
  static Growth place(PageSpace& space, std::size_t granules) {
    Refusal why = Refusal::none;
    CHECK(space.segments.reserve_records(mempool::SegmentList::kRecordsForOperation));
    if (space.free().holes().count() == 0) CHECK(space.segments.add(kSegment, why));
    mempool::Span* const hole = space.free().holes().best_fit(granules * kGranule);
    return {hole, hole->start, granules * kGranule};
  }
  // Makes a free range of new memory: one handle, or where it cannot be cut one a granule.
  void fill(PageSpace& space, std::size_t granules) {
    const Growth growth = place(space, granules);
    Filling filling(space, ledger, growth);
    const std::size_t handle = space.capabilities.can_cut ? growth.bytes : kGranule;
    while (filling.end() < growth.start + growth.bytes) CHECK(filling.commit(handle, why));
    CHECK(filling.finish(to_share, why));
    space.segments.free().settle();
  }
  std::vector<mempool::FreePiece> pieces_of(PageSpace& source, const Growth& growth) {
    PageSpace* const sources[] = {&source};
    return mempool::plan_moves(growth, target, sources, false).pieces;
  }
  void check(std::size_t in_target, std::size_t in_lender) {
    CHECK_EQ(target.segments.backed_bytes(), in_target * kGranule);
    CHECK_EQ(lender.segments.backed_bytes(), in_lender * kGranule);
    CHECK_EQ(ledger.held(), (in_target + in_lender) * kGranule);
    CHECK_EQ(memory.committed_bytes(), ledger.held());
    CHECK_EQ(ledger.read_stats().segments.all.current,
             target.segments.backed_ranges() + lender.segments.backed_ranges());
    for (const PageSpace* space : {&target, &lender}) {
      CHECK_EQ(static_cast<std::size_t>(space->reserved.all.current), space->segments.backed_bytes());
      std::size_t in_handles = 0;
      for (const auto& [start, handle] : space->handles.all()) in_handles += handle.bytes;
      CHECK_EQ(in_handles, space->segments.backed_bytes());
    }
    CHECK_EQ(memory.violation(), "");
  }

  FakeMemory memory;
  AccountRegistry accounts;
  Ledger ledger{accounts};
  StreamClock clock{nullptr, 0};
  Ledger::Reserved reserved[2];  // of the target, and of the lender
  PageSpace target{memory, clock, reserved[0], nullptr, kSegment, true};
  PageSpace lender{memory, clock, reserved[1], nullptr, kSegment, true};
  std::size_t to_share = 0;
  Refusal why = Refusal::none;
};

constexpr FakeMemory::Personality kPersonalities[] = {FakeMemory::Personality::host, FakeMemory::Personality::device};

}  // namespace

TEST(new_memory_that_is_refused_leaves_no_trace) {
  for (const FakeMemory::Personality personality : kPersonalities) {
    Fixture f(personality);
    Filling filling(f.target, f.ledger, Fixture::place(f.target, 3));
    f.ledger.force_limit(2 * kGranule);
    CHECK(filling.commit(kGranule, f.why));
    f.memory.fail_call(1);
    CHECK(!filling.commit(kGranule, f.why));
    CHECK(f.why == Refusal::backend);
    CHECK(filling.commit(kGranule, f.why));
    CHECK(!filling.commit(kGranule, f.why));
    CHECK(f.why == Refusal::limit);
    filling.give_back_new();
    CHECK(filling.finish(f.to_share, f.why));
    f.check(0, 0);
    CHECK_EQ(f.ledger.read_stats().commits, 0);
  }
}

TEST(the_first_bytes_of_a_chunk_count_as_shared) {
  Fixture f(FakeMemory::Personality::host);
  f.to_share = kGranule + kGranule / 2;
  f.fill(f.target, 3);
  CHECK_EQ(f.to_share, 0u);
  CHECK_EQ(f.ledger.read_stats().reserved_bytes.small.current, static_cast<std::int64_t>(kGranule + kGranule / 2));
  CHECK_EQ(f.reserved[0].small.current, static_cast<std::int64_t>(kGranule + kGranule / 2));
  f.check(3, 0);
}

TEST(memory_of_another_heap_moves_and_nothing_more_is_held) {
  for (const FakeMemory::Personality personality : kPersonalities) {
    Fixture f(personality);
    f.fill(f.lender, 3);
    const Growth growth = Fixture::place(f.target, 3);
    Filling filling(f.target, f.ledger, growth);
    for (const mempool::FreePiece& piece : f.pieces_of(f.lender, growth)) CHECK(filling.move(piece));
    CHECK_EQ(filling.end(), growth.start + 3 * kGranule);
    f.check(0, 3);  // accounted for at the end alone
    CHECK(filling.finish(f.to_share, f.why));
    f.check(3, 0);
    CHECK_EQ(f.ledger.read_stats().moved_bytes, static_cast<std::int64_t>(3 * kGranule));
    CHECK_EQ(f.reserved[0].all.allocated, static_cast<std::int64_t>(3 * kGranule));
    CHECK_EQ(f.reserved[1].all.freed, static_cast<std::int64_t>(3 * kGranule));
    CHECK_EQ(f.ledger.read_stats().reserved_bytes.all.freed, 0);
    // Without work on a stream what was left behind can go at once.
    CHECK_EQ(f.lender.stale.count(), personality == FakeMemory::Personality::device ? 3u : 0u);
    f.lender.sweep(false);
    CHECK(f.lender.stale.empty());
    f.check(3, 0);
  }
}

TEST(a_range_that_does_not_open_is_taken_apart_again) {
  Fixture f(FakeMemory::Personality::device);
  f.fill(f.lender, 2);
  const Growth growth = Fixture::place(f.target, 4);
  Filling filling(f.target, f.ledger, growth);
  for (const mempool::FreePiece& piece : f.pieces_of(f.lender, growth)) CHECK(filling.move(piece));
  CHECK(filling.commit(2 * kGranule, f.why));
  f.memory.fail_call(1);
  CHECK(!filling.finish(f.to_share, f.why));
  CHECK(f.why == Refusal::backend);
  CHECK(f.lender.stale.empty());
  f.check(0, 2);
}

TEST(memory_goes_back_in_whole_handles_from_the_high_end) {
  for (const FakeMemory::Personality personality : kPersonalities) {
    Fixture f(personality);
    f.fill(f.target, 4);
    mempool::Span* const span = f.target.free().whole().first_of_highest();
    const std::uintptr_t start = span->start;
    CHECK_EQ(f.target.release_from(span, kGranule + 1, SIZE_MAX, f.ledger), 2 * kGranule);
    f.ledger.count_ranges(f.target.segments.take_range_changes());
    f.check(2, 0);
    CHECK_EQ(f.target.release_from(span, kGranule, kGranule - 1, f.ledger), 0u);  // it would be more than that
    f.check(2, 0);
    CHECK_EQ(f.target.free().large().first_of_highest()->start, start);
  }
}
