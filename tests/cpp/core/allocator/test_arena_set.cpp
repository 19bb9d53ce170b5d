// Families and arenas: made when a stream asks, gone when nothing of them is left.
#include <memory>
#include <string>

#include "core/allocator/arena_set.h"
#include "core/fixtures.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::kMiB;

namespace {

// A set over a backend of its own. Its families say that another allocator owns them, which nothing here asks for.
struct Set {
  FakeDevice owner;
  Options options;
  FakeMemory memory{{}};
  AccountRegistry accounts;
  Ledger ledger{accounts};
  StreamClocks clocks{memory.stream_events()};
  ArenaSet arenas{*owner.allocator, memory, ledger, clocks, options};

  static Span* allocate(Arena& arena, std::size_t bytes, std::span<PageHeap* const> lenders = {}) {
    const ArenaGuard guard(arena.mutex);
    Refusal why = Refusal::none;
    return arena.pages.allocate(bytes, {.may_grow = true, .lenders = lenders}, why);
  }
  static void free(Span* span) {
    Arena& arena = *span->segment->arena;
    const ArenaGuard guard(arena.mutex);
    arena.pages.free(span);
  }
  std::size_t count() {
    std::size_t arenas_seen = 0;
    arenas.for_each([&arenas_seen](Arena&) { ++arenas_seen; });
    return arenas_seen;
  }
};

}  // namespace

TEST(a_family_has_one_arena_for_each_stream_that_has_asked) {
  Set set;
  ArenaFamily& family = set.arenas.open("graph", ArenaFamily::Kind::fixed);
  CHECK_EQ(set.count(), 1u);  // the default one
  Arena* const first = set.arenas.arena_of(family, 5);
  CHECK(first != nullptr && first == set.arenas.arena_of(family, 5));
  CHECK(set.arenas.arena_of(family, 6) != first);
  CHECK(family.first.load() == first);
  CHECK_EQ(set.arenas.arenas_of(family).size(), 2u);
  CHECK_EQ(set.count(), 3u);
  CHECK(&set.arenas.family_of(nullptr) == &set.arenas.default_family());
  set.arenas.for_each(
      [&](Arena& arena) { CHECK_EQ(set.arenas.number_of(arena.family), &arena.family == &family ? 1u : 0u); });
}

TEST(a_closed_family_goes_with_its_last_block_and_its_sums_stay) {
  Set set;
  ArenaFamily& family = set.arenas.open("pool", ArenaFamily::Kind::isolated);
  Arena& arena = *set.arenas.arena_of(family, 0);
  Span* const kept = Set::allocate(arena, 2 * kMiB);
  Set::free(Set::allocate(arena, 6 * kMiB));
  CHECK_EQ(set.arenas.held_bytes(family), 8 * kMiB);
  const std::int64_t counted = set.arenas.free_ranges().bytes.all.allocated;
  set.arenas.close(family);
  CHECK_EQ(set.arenas.held_bytes(), 2 * kMiB);
  CHECK_EQ(set.count(), 2u);
  Set::free(kept);
  CHECK_EQ(set.arenas.release(0, true), 0u);  // nothing more than asked for
  CHECK_EQ(set.arenas.release(SIZE_MAX, true), 2 * kMiB);
  CHECK_EQ(set.count(), 1u);
  CHECK_EQ(set.ledger.held(), 0u);
  const FreeRangeStats ranges = set.arenas.free_ranges();
  CHECK_EQ(ranges.bytes.all.current, 0);
  CHECK(counted > 0 && ranges.bytes.all.allocated >= counted);
}

TEST(all_lend_but_the_one_that_grows_and_fixed_families) {
  Set set;
  Arena& own = *set.arenas.arena_of(set.arenas.default_family(), 0);
  ArenaFamily& fixed = set.arenas.open("graph", ArenaFamily::Kind::fixed);
  ArenaFamily& pool = set.arenas.open("pool", ArenaFamily::Kind::isolated);
  for (ArenaFamily* const family : {&set.arenas.default_family(), &fixed, &pool}) {
    Set::free(Set::allocate(*set.arenas.arena_of(*family, 0), 4 * kMiB));
  }
  CHECK(ArenaSet::Lenders(set.arenas, own, false).heaps().empty());
  {
    const ArenaSet::Lenders lenders(set.arenas, own, true);
    CHECK_EQ(lenders.heaps().size(), 1u);
    CHECK(lenders.heaps()[0] == &pool.first.load()->pages);
    CHECK(!pool.first.load()->mutex.try_lock());
  }
  CHECK(pool.first.load()->mutex.try_lock());
  pool.first.load()->mutex.unlock();
  CHECK_EQ(set.arenas.free_bytes(), 12 * kMiB);
  CHECK_EQ(set.arenas.largest_free(), 4 * kMiB);
}

TEST(memory_goes_back_from_the_newest_arenas_first) {
  Set set;
  Arena& first = *set.arenas.arena_of(set.arenas.default_family(), 0);
  Arena& second = *set.arenas.arena_of(set.arenas.default_family(), 7);
  for (Arena* const arena : {&first, &second}) Set::free(Set::allocate(*arena, 4 * kMiB));
  CHECK_EQ(set.arenas.release(4 * kMiB, true), 4 * kMiB);
  CHECK_EQ(first.pages.held_bytes(), 4 * kMiB);
  CHECK_EQ(second.pages.held_bytes(), 0u);
  CHECK_EQ(set.arenas.release(set.arenas.default_family()), 4 * kMiB);
  CHECK_EQ(set.arenas.check_invariants(), "");
}

TEST(figures_of_the_set_are_reset_with_those_of_arenas_that_are_gone) {
  Set set;
  ArenaFamily& family = set.arenas.open("pool", ArenaFamily::Kind::isolated);
  Set::free(Set::allocate(*set.arenas.arena_of(family, 0), 4 * kMiB));
  set.arenas.close(family);
  CHECK_EQ(set.count(), 1u);
  CHECK(set.arenas.free_ranges().bytes.all.allocated > 0);
  set.arenas.reset(Stat::reset_sum);
  CHECK_EQ(set.arenas.free_ranges().bytes.all.allocated, 0);
  CHECK_EQ(set.arenas.free_ranges().bytes.all.freed, 0);
}

TEST(what_a_family_reserves_is_known_at_any_moment_and_when_it_is_gone) {
  const FakeDevice device;
  CachingAllocator& allocator = *device.allocator;
  Ledger& ledger = allocator.ledger();
  ArenaFamily& family = allocator.arenas().open("graph", ArenaFamily::Kind::fixed);
  const std::shared_ptr<Ledger::Reserved> reserved = family.reserved;
  void* const blocks[] = {allocator.allocate_from(family, 20 * kMiB, 0), allocator.allocate_from(family, 10 * kMiB, 1),
                          allocator.allocate_from(family, 100, 0)};
  const std::int64_t highest = ledger.read(*reserved).all.current;
  CHECK_EQ(highest, static_cast<std::int64_t>(allocator.arenas().held_bytes(family)));
  CHECK(ledger.read(*reserved).small.current > 0);
  for (void* const block : blocks) allocator.deallocate(block);
  CHECK_EQ(allocator.check_invariants(), "");
  allocator.arenas().close(family);
  CHECK(allocator.arenas().release_closed() > 0);
  const Stat gone = ledger.read(*reserved).all;
  CHECK_EQ(gone.current, 0);
  CHECK_EQ(gone.peak, highest);
  CHECK_EQ(gone.allocated, highest);
  CHECK_EQ(gone.freed, highest);
  ledger.reset(*reserved, Stat::reset_peak);
  CHECK_EQ(ledger.read(*reserved).all.peak, 0);
  device.check_empty();
}

// Its peak is one that was there: what moves between its arenas never counts twice.
TEST(memory_that_a_family_takes_over_counts_for_it_alone) {
  const FakeDevice device;
  CachingAllocator& allocator = *device.allocator;
  ArenaFamily& family = allocator.arenas().open("pool", ArenaFamily::Kind::isolated);
  const std::shared_ptr<Ledger::Reserved> reserved = family.reserved;
  const std::shared_ptr<Ledger::Reserved> other = allocator.arenas().default_family().reserved;
  allocator.deallocate(allocator.allocate(32 * kMiB));
  void* const block = allocator.allocate_from(family, 16 * kMiB, 0);
  CHECK_EQ(allocator.ledger().held(), 32 * kMiB);
  CHECK_EQ(allocator.ledger().read(*reserved).all.current, static_cast<std::int64_t>(16 * kMiB));
  CHECK_EQ(allocator.ledger().read(*other).all.current, static_cast<std::int64_t>(16 * kMiB));
  allocator.deallocate(block);
  void* const rest = allocator.allocate(16 * kMiB);  // what is free now is the family's own
  void* const elsewhere = allocator.allocate_from(family, 16 * kMiB, 3);
  CHECK_EQ(allocator.ledger().read(*reserved).all.peak, static_cast<std::int64_t>(16 * kMiB));
  allocator.deallocate(rest);
  allocator.deallocate(elsewhere);
  CHECK_EQ(allocator.check_invariants(), "");
  allocator.arenas().close(family);
  CHECK_EQ(allocator.ledger().read(*reserved).all.current, 0);
  device.check_empty();
}
