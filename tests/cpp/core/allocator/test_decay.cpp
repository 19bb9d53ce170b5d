// Memory that goes back by itself, in a time that the test makes.
#include <algorithm>
#include <cmath>
#include <random>

#include "core/accounts/demand_window.h"
#include "core/allocator/decay.h"
#include "core/fixtures.h"

using namespace mempool;
using fixtures::disagreeing_turn;
using fixtures::FakeDevice;
using fixtures::kMiB;

namespace {

void run_until(const FakeDevice& device, std::int64_t& now, std::int64_t end) {
  for (; now <= end; now += device.allocator->decay_tick_ms()) device.allocator->decay(now);
}

std::size_t held(const FakeDevice& device) { return device.allocator->ledger().held(); }

}  // namespace

TEST(the_window_knows_the_highest_demand_within_its_span) {
  DemandWindow window(100);
  window.add(0, 50);
  CHECK_EQ(window.highest(), 50);
  window.add(10, 80);
  window.add(20, 30);
  window.add(30, 60);
  CHECK_EQ(window.highest(), 80);
  window.add(109, 10);
  CHECK_EQ(window.highest(), 80);
  window.add(110, 10);
  CHECK_EQ(window.highest(), 60);
  window.add(130, 5);
  CHECK_EQ(window.highest(), 10);
  window.add(500, 1);
  CHECK_EQ(window.highest(), 1);
}

TEST(what_no_demand_of_the_span_has_come_near_is_surplus) {
  Decay decay(1000, 2 * kMiB);
  CHECK(decay.is_on());
  CHECK_EQ(decay.tick_ms(), 40);
  CHECK(decay.tick(0, 64 * kMiB, 0));
  CHECK(decay.tick(500, 32 * kMiB, 0));
  CHECK_EQ(decay.surplus(100 * kMiB, 0), 34 * kMiB);  // 64 MiB and a 32nd of it stay
  CHECK_EQ(decay.surplus(68 * kMiB - 1, 0), 0u);      // less than a granule is not worth a step
  CHECK_EQ(decay.surplus(68 * kMiB, 0), 2 * kMiB);
  CHECK(decay.tick(1000, 16 * kMiB, 0));  // the first tick has left the span
  CHECK_EQ(decay.surplus(100 * kMiB, 0), 67 * kMiB);
  CHECK_EQ(decay.surplus(100 * kMiB, 32 * kMiB), 100 * kMiB);
  CHECK_EQ(decay.surplus(100 * kMiB, SIZE_MAX), 100 * kMiB);
}

TEST(blocks_that_wait_unused_in_caches_are_no_demand) {
  Decay decay(1000, 2 * kMiB);
  CHECK(decay.tick(0, 64 * kMiB, 64 * kMiB));
  CHECK_EQ(decay.surplus(64 * kMiB, 0), 64 * kMiB);
  CHECK(decay.tick(10, 8 * kMiB, 9 * kMiB));  // unused may be ahead of need
  CHECK_EQ(decay.surplus(64 * kMiB, 0), 64 * kMiB);
}

TEST(caches_are_recalled_once_blocks_have_waited_in_them_for_all_of_the_span) {
  Decay decay(1000, 2 * kMiB);
  const auto recalls = [&decay](std::int64_t now_ms, std::size_t unused) {
    CHECK(decay.tick(now_ms, 64 * kMiB, unused));
    return decay.should_recall(unused);
  };
  CHECK(!recalls(0, 4 * kMiB));
  CHECK(!recalls(999, 2 * kMiB));
  CHECK(!recalls(1000, 2 * kMiB - 1));  // fewer than a granule: it starts anew
  CHECK(!recalls(1010, 4 * kMiB));
  CHECK(!recalls(2009, 4 * kMiB));
  CHECK(recalls(2010, 4 * kMiB));
  CHECK(!recalls(2020, 4 * kMiB));  // and anew again
  CHECK(recalls(3020, 4 * kMiB));
}

TEST(ticks_come_twenty_times_in_the_span_within_bounds) {
  CHECK_EQ(Decay(1, 1).tick_ms(), 1);
  CHECK_EQ(Decay(100, 1).tick_ms(), 5);
  CHECK_EQ(Decay(10000, 1).tick_ms(), 40);
  CHECK(!Decay(kNeverDecays, 1).is_on());
}

TEST(what_a_burst_left_goes_back_after_decay_ms) {
  for (const FakeMemory::Settings& settings : fixtures::personalities()) {
    const FakeDevice device({.decay_ms = 1000}, settings);
    std::int64_t now = 0;
    void* const kept = device.allocator->allocate(10 * kMiB);
    std::vector<void*> burst;
    for (int i = 0; i < 40; ++i) burst.push_back(device.allocator->allocate(5 * kMiB));
    run_until(device, now, 300);
    for (void* block : burst) device.allocator->deallocate(block);
    const std::size_t peak = held(device);
    run_until(device, now, 1250);
    CHECK_EQ(held(device), peak);
    run_until(device, now, 1400);
    CHECK(held(device) <= 12 * kMiB);  // the caches of threads have given up theirs too
    CHECK_EQ(device.allocator->check_invariants(), "");
    device.allocator->deallocate(kept);
    device.check_empty();
  }
}

TEST(what_each_step_needs_stays) {
  const FakeDevice device({.decay_ms = 1000});
  std::int64_t now = 0;
  std::size_t peak = 0;
  for (int step = 0; step < 20; ++step) {  // a step takes 900 ms and needs all of the memory for a moment
    std::vector<void*> blocks;
    for (int i = 0; i < 20; ++i) blocks.push_back(device.allocator->allocate(5 * kMiB));
    for (void* block : blocks) device.allocator->deallocate(block);
    run_until(device, now, now + 900);
    if (step == 0) peak = held(device);
    CHECK_EQ(held(device), peak);
  }
  const auto commits = device.memory->calls(FakeMemory::Call::commit);
  CHECK(commits <= 20);
  run_until(device, now, now + 1200);
  CHECK_EQ(held(device), 0u);
  device.check_empty();
}

TEST(memory_that_never_decays_stays) {
  const FakeDevice device({.decay_ms = kNeverDecays});
  device.allocator->deallocate(device.allocator->allocate(64 * kMiB));
  std::int64_t now = 0;
  run_until(device, now, 100);
  device.allocator->decay(1'000'000'000);
  CHECK_EQ(held(device), 64 * kMiB);
  device.check_empty();
}

// Blocks that wait in a thread's cache keep whole handles from being free. They go back with the rest.
TEST(a_burst_of_all_sizes_leaves_little_more_than_what_is_live) {
  const FakeDevice device({.decay_ms = 1000}, {.accessible = false});
  std::int64_t now = 0;
  std::mt19937 random(1);
  std::uniform_real_distribution<double> exponent(16, 25);  // 64 KiB to 32 MiB
  const auto allocate = [&](std::size_t most) {
    std::vector<void*> blocks;
    for (std::size_t sum = 0; sum < most;) {
      const auto bytes = static_cast<std::size_t>(std::exp2(exponent(random)));
      blocks.push_back(device.allocator->allocate(bytes));
      sum += bytes;
    }
    return blocks;
  };
  const std::vector<void*> kept = allocate(100 * kMiB);
  std::vector<void*> burst = allocate(1024 * kMiB);
  run_until(device, now, 40);
  std::shuffle(burst.begin(), burst.end(), random);
  for (void* block : burst) device.allocator->deallocate(block);
  const auto live = static_cast<std::size_t>(device.allocated());
  run_until(device, now, 1140);
  CHECK(held(device) <= live * 110 / 100);
  for (void* block : kept) device.allocator->deallocate(block);
  device.check_empty();
}

// A small process whose steps disagree about the layout: what it takes for them to rest is no surplus while they run,
// and goes back after the last.
TEST(memory_that_lets_a_workload_rest_stays_as_long_as_it_runs) {
  const FakeDevice device({.thread_cache_bytes = 0, .decay_ms = 1000});
  std::int64_t now = 0;
  void* const weights = device.allocator->allocate(100 * kMiB);
  const auto turn = [&] {
    disagreeing_turn(*device.allocator, 400);
    run_until(device, now, now + 200);
  };
  for (int i = 0; i < 20; ++i) turn();
  const auto calls = device.memory->fallible_calls();
  const DeviceStats stats = device.allocator->stats();
  CHECK(stats.reserved_bytes.all.current > stats.blocks.all.bytes.peak + 12 * static_cast<std::int64_t>(kMiB));
  for (int i = 0; i < 20; ++i) turn();
  CHECK_EQ(device.memory->fallible_calls(), calls);
  run_until(device, now, now + 3000);
  CHECK(held(device) <= 104 * kMiB);
  device.allocator->deallocate(weights);
  device.check_empty();
}
