// Memory that is held ahead of demand: for the root and for isolated pools, through decay, trims and the need of
// others.
#include <string>
#include <thread>
#include <vector>

#include "common/errors.h"
#include "core/current_pool.h"
#include "core/fixtures.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::kMiB;

namespace {

std::size_t held(const FakeDevice& device) { return device.allocator->ledger().held(); }
std::size_t commits(const FakeDevice& device) { return device.memory->calls(FakeMemory::Call::commit); }

std::vector<FakeMemory::Settings> all_personalities() {
  std::vector<FakeMemory::Settings> out = fixtures::personalities();
  out.push_back({.personality = FakeMemory::Personality::plain});
  out.push_back({.personality = FakeMemory::Personality::exact});
  return out;
}

void decay_for_long(const FakeDevice& device) {
  for (std::int64_t now = 0; now < 60'000; now += device.allocator->decay_tick_ms()) device.allocator->decay(now);
}

}  // namespace

TEST(what_is_reserved_is_taken_at_once_and_serves_requests_without_a_call) {
  for (const FakeMemory::Settings& settings : all_personalities()) {
    FakeDevice device({}, settings);
    device.allocator->reserve(nullptr, 64 * kMiB + 1);
    const std::size_t granule = device.memory->granule_bytes();
    CHECK_EQ(held(device), 64 * kMiB + granule);
    CHECK_EQ(device.allocated(), 0);
    CHECK_EQ(device.allocator->stats().blocks.all.bytes.peak, 0);
    const std::size_t before = commits(device);
    std::vector<void*> blocks;
    for (int i = 0; i < 6; ++i) blocks.push_back(device.allocator->allocate(10 * kMiB));
    CHECK_EQ(commits(device), before);
    for (void* const block : blocks) device.allocator->deallocate(block);
    device.allocator->reserve(nullptr, 0);
    device.check_empty();
  }
}

TEST(it_neither_decays_nor_is_trimmed_and_goes_once_it_is_reserved_no_more) {
  for (const FakeMemory::Settings& settings : all_personalities()) {
    FakeDevice device({}, settings);
    device.allocator->reserve(nullptr, 32 * kMiB);
    void* const block = device.allocator->allocate(100 * kMiB);
    device.allocator->deallocate(block);
    CHECK(held(device) >= 100 * kMiB);
    decay_for_long(device);
    CHECK(held(device) >= 32 * kMiB);
    // Where memory comes with its addresses, it goes back in whole segments: either of the two.
    const bool is_exact = !device.memory->capabilities().backs_addresses;
    if (is_exact) CHECK_EQ(held(device), 32 * kMiB);
    device.allocator->trim(0);
    CHECK(is_exact ? held(device) == 32 * kMiB : held(device) >= 32 * kMiB && held(device) <= 100 * kMiB);
    device.allocator->reserve(nullptr, 16 * kMiB);
    device.allocator->trim(0);
    CHECK(held(device) >= 16 * kMiB);
    device.allocator->reserve(nullptr, 0);
    device.check_empty();
  }
}

TEST(what_is_held_already_counts) {
  FakeDevice device;
  void* const block = device.allocator->allocate(20 * kMiB);
  const std::size_t before = held(device);
  device.allocator->reserve(nullptr, 16 * kMiB);
  CHECK_EQ(held(device), before);
  device.allocator->reserve(nullptr, 30 * kMiB);
  CHECK_EQ(held(device), 30 * kMiB);
  device.allocator->deallocate(block);
  device.allocator->trim(0);
  CHECK_EQ(held(device), 30 * kMiB);
  device.allocator->reserve(nullptr, 0);
  device.check_empty();
}

TEST(memory_of_one_pool_is_not_taken_by_others) {
  for (const FakeMemory::Settings& settings : all_personalities()) {
    Options options;
    options.limit = 128 * kMiB;
    FakeDevice device(options, settings);
    Account* const pool = device.allocator->pools().open("pool", nullptr, true, kNoLimit, kNoLimit);
    device.allocator->reserve(pool, 64 * kMiB);
    CHECK_EQ(device.allocator->reserved_for(pool), 64 * kMiB);
    CHECK_EQ(device.allocator->reserved_for(nullptr), 0u);
    CHECK_THROWS(OutOfMemory, device.allocator->allocate(100 * kMiB));
    void* const other = device.allocator->allocate(60 * kMiB);
    const std::size_t before = commits(device);
    fixtures::set_current_pool(*device.allocator, pool);
    void* const own = device.allocator->allocate(60 * kMiB);
    fixtures::set_current_pool(*device.allocator, nullptr);
    CHECK_EQ(commits(device), before);
    device.allocator->deallocate(own);
    device.allocator->deallocate(other);
    device.allocator->pools().drop(*pool);
    device.check_empty();  // the reservation has ended with the pool
  }
}

// Else decay would take from the root what it needs all the time, as much as lies unused in the pool.
TEST(memory_that_a_pool_keeps_unused_does_not_make_others_decay) {
  FakeDevice device({}, {.personality = FakeMemory::Personality::host});
  Account* const pool = device.allocator->pools().open("pool", nullptr, true, kNoLimit, kNoLimit);
  device.allocator->reserve(pool, 64 * kMiB);
  for (std::int64_t now = 0; now < 60'000; now += device.allocator->decay_tick_ms()) {
    device.allocator->deallocate(device.allocator->allocate(100 * kMiB));
    device.allocator->decay(now);
    CHECK_EQ(held(device), 164 * kMiB);
  }
  device.allocator->pools().drop(*pool);
  decay_for_long(device);
  device.check_empty();
}

TEST(a_limit_that_is_no_multiple_of_a_granule_can_be_reserved) {
  for (const FakeMemory::Settings& settings : all_personalities()) {
    Options options;
    options.limit = 64 * kMiB + 100;
    FakeDevice device(options, settings);
    device.allocator->reserve(nullptr, options.limit);
    CHECK_EQ(held(device), 64 * kMiB);
    CHECK_THROWS(OutOfMemory, device.allocator->reserve(nullptr, options.limit + 1));
    device.allocator->reserve(nullptr, 0);
    device.check_empty();
  }
}

TEST(a_limit_below_what_is_reserved_is_refused_and_says_so) {
  FakeDevice device;
  device.allocator->reserve(nullptr, 64 * kMiB);
  try {
    device.allocator->set_limit(32 * kMiB);
    CHECK(false);
  } catch (const ConfigError& error) {
    CHECK(std::string(error.what()).find("reserve less than the 67108864 bytes that are reserved") !=
          std::string::npos);
  }
  device.allocator->reserve(nullptr, 0);
  device.allocator->set_limit(32 * kMiB);
  device.check_empty();
}

TEST(threads_that_reserve_for_one_pool_leave_what_the_last_of_them_asked_for) {
  for (int round = 0; round < 20; ++round) {
    Options options;
    options.limit = 128 * kMiB;
    FakeDevice device(options);
    std::vector<std::thread> threads;
    for (const std::size_t mebibytes : {16, 32, 400}) {  // the last is refused
      threads.emplace_back([&device, mebibytes] {
        try {
          device.allocator->reserve(nullptr, mebibytes * kMiB);
        } catch (const OutOfMemory&) {
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    const std::size_t kept = device.allocator->reserved_for(nullptr);
    CHECK(kept == 16 * kMiB || kept == 32 * kMiB);
    CHECK(held(device) >= kept);
    CHECK_EQ(device.allocator->check_invariants(), "");
    device.allocator->reserve(nullptr, 0);
    device.check_empty();
  }
}

TEST(a_family_may_use_its_reserved_memory_in_another_form) {
  Options options;
  options.limit = 64 * kMiB;
  FakeDevice device(options, {.personality = FakeMemory::Personality::plain});
  device.allocator->reserve(nullptr, 32 * kMiB);
  device.allocator->reserve(nullptr, 64 * kMiB);  // in two pieces, neither of which is long enough
  void* const block = device.allocator->allocate(60 * kMiB);
  device.allocator->deallocate(block);
  device.allocator->reserve(nullptr, 0);
  device.check_empty();
}

TEST(what_cannot_be_had_changes_nothing) {
  for (const FakeMemory::Settings& settings : all_personalities()) {
    Options options;
    options.limit = 100 * kMiB;
    FakeDevice device(options, settings);
    device.allocator->reserve(nullptr, 20 * kMiB);
    try {
      device.allocator->reserve(nullptr, 400 * kMiB);
      CHECK(false);
    } catch (const OutOfMemory& error) {
      CHECK(error.info().reason == OomReason::device_limit);
      CHECK_EQ(error.info().limit, 100 * kMiB);
    }
    CHECK_EQ(device.allocator->reserved_for(nullptr), 20 * kMiB);
    CHECK_EQ(held(device), 20 * kMiB);
    CHECK_THROWS(OutOfMemory, device.allocator->reserve(nullptr, SIZE_MAX));
    device.allocator->reserve(nullptr, 0);
    device.check_empty();
  }
}

TEST(only_the_root_and_isolated_pools_reserve) {
  FakeDevice device;
  Account* const shared = device.allocator->pools().open("shared", nullptr, false, kNoLimit, kNoLimit);
  CHECK_THROWS(ConfigError, device.allocator->reserve(shared, kMiB));
  Account* const pool = device.allocator->pools().open("pool", nullptr, true, kNoLimit, kNoLimit);
  device.allocator->reserve(pool, 8 * kMiB);
  device.allocator->sleep_pool(*pool, true);
  CHECK_EQ(held(device), 0u);
  CHECK_THROWS(PoolAsleepError, device.allocator->reserve(pool, 16 * kMiB));
  device.allocator->wake_pool(*pool);
  CHECK_EQ(held(device), 8 * kMiB);
  device.allocator->pools().close(*pool);
  CHECK_THROWS(PoolClosedError, device.allocator->reserve(pool, 16 * kMiB));
  device.allocator->pools().drop(*pool);
  device.allocator->pools().drop(*shared);
  device.check_empty();
}

TEST(a_failing_backend_leaves_the_reservation_as_it_was) {
  for (const FakeMemory::Settings& settings : all_personalities()) {
    for (int call = 1; call < 6; ++call) {
      FakeDevice device({}, settings);
      device.allocator->reserve(nullptr, 4 * kMiB);
      device.memory->fail_call(call);
      try {
        device.allocator->reserve(nullptr, 600 * kMiB);
        CHECK(held(device) >= 600 * kMiB);
      } catch (const OutOfMemory&) {
        CHECK_EQ(device.allocator->reserved_for(nullptr), 4 * kMiB);
      }
      device.memory->fail_call(0);
      CHECK_EQ(device.allocator->check_invariants(), "");
      device.allocator->reserve(nullptr, 0);
      device.check_empty();
    }
  }
}

TEST(growth_by_a_step_or_by_doubling_makes_fewer_calls) {
  const auto commits_of = [](const char* growth, std::size_t limit) {
    Options options;
    options.limit = limit;
    parse_conf(options, std::string("growth:") + growth, 1 << 30);
    FakeDevice device(options, {.personality = FakeMemory::Personality::host});
    std::vector<void*> blocks;
    for (int i = 0; i < 64; ++i) blocks.push_back(device.allocator->allocate(4 * kMiB));
    const std::size_t out = commits(device);
    for (void* const block : blocks) device.allocator->deallocate(block);
    device.check_empty();
    return out;
  };
  CHECK_EQ(commits_of("as_needed", kNoLimit), 64u);
  CHECK_EQ(commits_of("64MiB", kNoLimit), 4u);
  CHECK_EQ(commits_of("double", kNoLimit), 7u);   // 4 MiB, and six times as much as is held
  CHECK(commits_of("double", 256 * kMiB) <= 8u);  // the limit cuts a step short
  CHECK(commits_of("200MiB", 256 * kMiB) <= 3u);
}
