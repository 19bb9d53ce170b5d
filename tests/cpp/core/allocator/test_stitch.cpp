// Free memory that moves under a range which is too short.
#include "core/allocator/caching_allocator.h"
#include "core/current_pool.h"
#include "core/fixtures.h"

using namespace mempool;
using fixtures::disagreeing_turn;
using fixtures::FakeDevice;
using fixtures::kMiB;

TEST(free_memory_is_moved_under_a_range_that_is_too_short) {
  for (const FakeMemory::Settings& settings : fixtures::personalities()) {
    const FakeDevice device({}, settings);
    std::vector<void*> blocks;
    for (int i = 0; i < 16; ++i) blocks.push_back(device.allocator->allocate(4 * kMiB));
    const std::size_t held = device.allocator->ledger().held();
    std::memset(blocks[1], 7, 4 * kMiB);
    for (std::size_t i = 0; i < blocks.size(); i += 2) device.allocator->deallocate(blocks[i]);
    // 32 MiB are free in eight places. One range of all of them: nothing new is asked for, live blocks stay.
    void* const wide = device.allocator->allocate(32 * kMiB);
    std::memset(wide, 1, 32 * kMiB);
    CHECK_EQ(device.allocator->ledger().held(), held);
    const DeviceStats stats = device.allocator->stats();
    CHECK_EQ(stats.moved_bytes, static_cast<std::int64_t>(32 * kMiB));
    CHECK(stats.moves <= 8);
    CHECK_EQ(static_cast<char*>(blocks[1])[3 * kMiB], 7);
    CHECK_EQ(device.allocator->check_invariants(), "");
    device.allocator->deallocate(wide);
    for (std::size_t i = 1; i < blocks.size(); i += 2) device.allocator->deallocate(blocks[i]);
    device.check_empty();
  }
}

// With all memory in use for either half of a turn, something has to move in each. Once the turns are seen to recur,
// the ranges get memory of their own and no call is made any more.
TEST(a_workload_that_repeats_itself_comes_to_rest) {
  for (const FakeMemory::Settings& settings : fixtures::personalities()) {
    const FakeDevice device({.thread_cache_bytes = 0}, settings);
    std::vector<void*> weights;
    for (int i = 0; i < 16; ++i) weights.push_back(device.allocator->allocate(40 * kMiB));
    const auto turn = [&] { disagreeing_turn(*device.allocator, 2000); };
    for (int i = 0; i < 20; ++i) turn();
    const auto calls = device.memory->fallible_calls();
    for (int i = 0; i < 20; ++i) turn();
    CHECK_EQ(device.memory->fallible_calls(), calls);
    const DeviceStats stats = device.allocator->stats();
    CHECK(stats.reserved_bytes.all.peak <= stats.blocks.all.bytes.peak * 107 / 100);
    for (void* block : weights) device.allocator->deallocate(block);
    device.check_empty();
  }
}

TEST(a_repeated_pattern_stops_moving) {
  const FakeDevice device;
  const auto step = [&] {
    std::vector<void*> blocks;
    for (const std::size_t mib : {5u, 9u, 3u, 14u}) blocks.push_back(device.allocator->allocate(mib * kMiB));
    device.allocator->deallocate(blocks[0]);
    device.allocator->deallocate(blocks[2]);
    void* const wide = device.allocator->allocate(8 * kMiB);
    device.allocator->deallocate(blocks[1]);
    device.allocator->deallocate(blocks[3]);
    device.allocator->deallocate(wide);
  };
  for (int i = 0; i < 5; ++i) step();
  const auto calls = device.memory->fallible_calls();
  for (int i = 0; i < 20; ++i) step();
  CHECK_EQ(device.memory->fallible_calls(), calls);
  device.check_empty();
}

TEST(idle_granules_of_other_arenas_serve_whoever_needs_them) {
  for (const FakeMemory::Settings& settings : fixtures::personalities()) {
    const FakeDevice device({}, settings);
    CachingAllocator& allocator = *device.allocator;
    Account* const pool = allocator.pools().open("own", nullptr, true, kNoLimit, kNoLimit);
    fixtures::set_current_pool(allocator, pool);
    std::vector<void*> blocks;
    for (int i = 0; i < 8; ++i) blocks.push_back(allocator.allocate(4 * kMiB));
    for (std::size_t i = 0; i < blocks.size(); i += 2) allocator.deallocate(blocks[i]);
    fixtures::set_current_pool(allocator, nullptr);
    const std::size_t held = allocator.ledger().held();
    void* const wide = allocator.allocate(16 * kMiB);  // from the pool's four gaps
    std::memset(wide, 1, 16 * kMiB);
    CHECK_EQ(allocator.ledger().held(), held);
    CHECK_EQ(allocator.pools().held_bytes(*pool), 16 * kMiB);
    CHECK_EQ(allocator.check_invariants(), "");
    allocator.deallocate(wide);
    allocator.trim(kNoLimit);  // out of this thread's cache
    fixtures::set_current_pool(allocator, pool);
    void* const back = allocator.allocate(16 * kMiB);  // and the other way
    fixtures::set_current_pool(allocator, nullptr);
    CHECK_EQ(allocator.ledger().held(), held);
    allocator.deallocate(back);
    for (std::size_t i = 1; i < blocks.size(); i += 2) allocator.deallocate(blocks[i]);
    allocator.pools().drop(*pool);
    device.check_empty();
  }
}

TEST(defragmentation_makes_one_range_of_what_is_free) {
  for (const FakeMemory::Settings& settings : fixtures::personalities()) {
    const FakeDevice device({}, settings);
    CachingAllocator& allocator = *device.allocator;
    std::vector<void*> blocks;
    for (int i = 0; i < 16; ++i) blocks.push_back(allocator.allocate(4 * kMiB));
    std::memset(blocks[1], 9, 4 * kMiB);
    for (std::size_t i = 0; i < blocks.size(); i += 2) allocator.deallocate(blocks[i]);
    const std::size_t held = allocator.ledger().held();
    const Gathering report = allocator.defragment();
    CHECK_EQ(report.moved_bytes, 32 * kMiB);  // none of the eight lies beside room for the others
    CHECK_EQ(report.regained_bytes, 28 * kMiB);
    CHECK(report.moves >= 8);
    CHECK_EQ(allocator.ledger().held(), held);
    CHECK_EQ(allocator.check_invariants(), "");
    CHECK_EQ(allocator.defragment().moves, 0u);
    const std::uint64_t calls = device.memory->fallible_calls();
    void* const wide = allocator.allocate(32 * kMiB);
    CHECK_EQ(device.memory->fallible_calls(), calls);
    CHECK_EQ(static_cast<char*>(blocks[1])[4 * kMiB - 1], 9);
    allocator.deallocate(wide);
    for (std::size_t i = 1; i < blocks.size(); i += 2) allocator.deallocate(blocks[i]);
    device.check_empty();
  }
}
