// Pools that sleep: no memory, every address kept, contents saved or dropped, all or nothing.
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "core/current_pool.h"
#include "core/failing_new.h"
#include "core/fixtures.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::kMiB;

namespace {

struct SleepingPool {
  explicit SleepingPool(const FakeMemory::Settings& settings, const Options& options = {}) : device(options, settings) {
    pool = device.allocator->pools().open("model", nullptr, true, kNoLimit, kNoLimit);
    allocate();
  }
  void allocate() {
    fixtures::set_current_pool(*device.allocator, pool);
    for (const std::size_t bytes : {std::size_t{100}, std::size_t{40000}, 5 * kMiB, 3 * kMiB, 9 * kMiB}) {
      blocks.push_back({static_cast<unsigned char*>(device.allocator->allocate(bytes)), bytes});
      std::memset(blocks.back().first, static_cast<int>(blocks.size()), bytes);
    }
    fixtures::set_current_pool(*device.allocator, nullptr);
  }
  bool contents_are_whole() const {
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      for (std::size_t at = 0; at < blocks[i].second; ++at) {
        if (blocks[i].first[at] != i + 1) return false;
      }
    }
    return true;
  }
  void free_all() {
    for (const auto& [address, bytes] : blocks) CHECK(device.allocator->deallocate(address));
    blocks.clear();
  }
  void finish() {
    free_all();
    device.allocator->pools().drop(*pool);
    device.check_empty();
  }

  FakeDevice device;
  Account* pool = nullptr;
  std::vector<std::pair<unsigned char*, std::size_t>> blocks;
};

}  // namespace

TEST(a_pool_sleeps_without_memory_and_wakes_where_it_was) {
  for (const FakeMemory::Settings& settings : fixtures::personalities()) {
    SleepingPool pool(settings);
    CachingAllocator& allocator = *pool.device.allocator;
    const DeviceStats awake = allocator.stats();
    for (int cycle = 0; cycle < 3; ++cycle) {
      allocator.sleep_pool(*pool.pool, true);
      CHECK(allocator.pool_asleep(*pool.pool));
      CHECK_EQ(allocator.ledger().held(), 0u);
      CHECK_EQ(allocator.pools().held_bytes(*pool.pool), 0u);
      CHECK_EQ(pool.device.memory->committed_bytes(), 0u);
      CHECK_EQ(allocator.stats().segments.all.current, 0);
      CHECK_EQ(allocator.stats().reserved_bytes.small.current, 0);
      CHECK_EQ(pool.device.allocated(), awake.blocks.all.bytes.current);
      allocator.sleep_pool(*pool.pool, true);  // no effect
      allocator.wake_pool(*pool.pool);
      CHECK(!allocator.pool_asleep(*pool.pool));
      CHECK(pool.contents_are_whole());
      CHECK_EQ(allocator.check_invariants(), "");
    }
    const DeviceStats again = allocator.stats();
    CHECK_EQ(again.reserved_bytes.all.current, awake.reserved_bytes.all.current);
    CHECK_EQ(again.reserved_bytes.small.current, awake.reserved_bytes.small.current);
    CHECK_EQ(again.segments.all.current, awake.segments.all.current);
    pool.finish();
  }
}

TEST(a_pool_that_sleeps_refuses_blocks_and_takes_frees) {
  for (const FakeMemory::Settings& settings : fixtures::personalities()) {
    SleepingPool pool(settings);
    CachingAllocator& allocator = *pool.device.allocator;
    allocator.sleep_pool(*pool.pool, false);
    fixtures::set_current_pool(allocator, pool.pool);
    CHECK_THROWS(PoolAsleepError, allocator.allocate(100));
    CHECK_THROWS(PoolAsleepError, allocator.allocate(10 * kMiB));
    fixtures::set_current_pool(allocator, nullptr);
    CHECK(allocator.deallocate(pool.blocks[2].first));
    CHECK(allocator.deallocate(pool.blocks[0].first));
    CHECK_EQ(allocator.trim_pool(*pool.pool), 0u);
    allocator.wake_pool(*pool.pool);
    CHECK_EQ(allocator.arenas().check_invariants(), "");
    pool.blocks.erase(pool.blocks.begin() + 2);
    pool.blocks.erase(pool.blocks.begin());
    pool.finish();
  }
}

TEST(a_pool_may_die_in_its_sleep) {
  for (const FakeMemory::Settings& settings : fixtures::personalities()) {
    SleepingPool pool(settings);
    pool.device.allocator->sleep_pool(*pool.pool, true);
    pool.finish();
  }
}

TEST(a_pool_wakes_within_the_limits_or_sleeps_on) {
  SleepingPool pool({}, {.limit = 40 * kMiB});
  CachingAllocator& allocator = *pool.device.allocator;
  allocator.sleep_pool(*pool.pool, true);
  void* const other = allocator.allocate(30 * kMiB);
  CHECK_THROWS(OutOfMemory, allocator.wake_pool(*pool.pool));
  CHECK(allocator.pool_asleep(*pool.pool));
  CHECK_EQ(allocator.check_invariants(), "");
  allocator.deallocate(other);  // it is free now, but held: waking gives it back first
  allocator.wake_pool(*pool.pool);
  CHECK(pool.contents_are_whole());
  pool.finish();
}

TEST(only_isolated_pools_sleep) {
  const FakeDevice device;
  Account* const pool = device.allocator->pools().open("shared", nullptr, false, kNoLimit, kNoLimit);
  CHECK_THROWS(ConfigError, device.allocator->sleep_pool(*pool, true));
  CHECK(!device.allocator->pool_asleep(*pool));
  device.allocator->pools().drop(*pool);
}

// Each call of sleep and wake in turn fails: the pool is awake with all of its contents, or asleep and wakes with them.
TEST(sleep_and_wake_are_all_or_nothing) {
  for (const FakeMemory::Settings& settings : fixtures::personalities()) {
    for (std::uint64_t n = 1; n < 40; ++n) {
      SleepingPool pool(settings);
      CachingAllocator& allocator = *pool.device.allocator;
      pool.device.memory->fail_call(n);
      bool slept = false;
      bool woke = false;
      try {
        allocator.sleep_pool(*pool.pool, true);
        slept = true;
        allocator.wake_pool(*pool.pool);
        woke = true;
      } catch (const PoolStateError&) {
        CHECK_EQ(allocator.pool_asleep(*pool.pool), slept);  // its contents could not be read back, or saved
      } catch (const OutOfMemory&) {
        CHECK(slept);
      }
      pool.device.memory->fail_call(0);
      CHECK_EQ(allocator.arenas().check_invariants(), "");
      if (!woke) allocator.wake_pool(*pool.pool);
      CHECK(pool.contents_are_whole());
      CHECK_EQ(allocator.check_invariants(), "");
      pool.finish();
    }
  }
}

TEST(the_host_keeps_addresses_and_contents) {
  CachingAllocator allocator("host", std::make_unique<HostMemory>(true), {});
  Account* const pool = allocator.pools().open("model", nullptr, true, kNoLimit, kNoLimit);
  fixtures::set_current_pool(allocator, pool);
  auto* const block = static_cast<unsigned char*>(allocator.allocate(20 * kMiB));
  fixtures::set_current_pool(allocator, nullptr);
  for (std::size_t i = 0; i < 20 * kMiB; ++i) block[i] = static_cast<unsigned char>(i * 7);
  for (int cycle = 0; cycle < 3; ++cycle) {
    allocator.sleep_pool(*pool, true);
    CHECK_EQ(allocator.ledger().held(), 0u);
    allocator.wake_pool(*pool);
  }
  bool whole = true;
  for (std::size_t i = 0; i < 20 * kMiB; ++i) whole &= block[i] == static_cast<unsigned char>(i * 7);
  CHECK(whole);
  allocator.deallocate(block);
  allocator.pools().drop(*pool);
  CHECK_EQ(allocator.ledger().held(), 0u);
}

TEST(a_pool_stays_awake_when_its_records_find_no_memory) {
  for (long n = 1; n < 200; ++n) {
    const FakeDevice device({}, {.personality = FakeMemory::Personality::device});
    CachingAllocator& allocator = *device.allocator;
    Account* const pool = allocator.pools().open("model", nullptr, true, kNoLimit, kNoLimit);
    fixtures::set_current_pool(allocator, pool);
    void* const blocks[] = {allocator.allocate(5 * kMiB, 0), allocator.allocate(3 * kMiB, 1),
                            allocator.allocate(100, 2)};
    fixtures::set_current_pool(allocator, nullptr);
    std::memset(blocks[1], 7, 3 * kMiB);
    fixtures::fail_new(n);
    bool has_failed = false;
    try {
      allocator.sleep_pool(*pool, true);
    } catch (const std::bad_alloc&) {
      has_failed = true;
    } catch (const PoolStateError&) {
      has_failed = true;
    }
    const bool was_told = fixtures::fail_new(0) == 0;
    if (has_failed) {
      CHECK(!allocator.pool_asleep(*pool));
      CHECK_EQ(allocator.arenas().check_invariants(), "");
      allocator.sleep_pool(*pool, true);
    }
    CHECK(allocator.pool_asleep(*pool));
    allocator.wake_pool(*pool);
    CHECK(static_cast<unsigned char*>(blocks[1])[3 * kMiB - 1] == 7);
    for (void* block : blocks) allocator.deallocate(block);
    allocator.pools().drop(*pool);
    device.check_empty();
    if (!was_told) return;  // it allocates no more often than that
  }
  CHECK(false);
}

namespace {

std::string reason_to_stay_awake(CachingAllocator& allocator, Account& pool, bool keep = true) {
  try {
    allocator.sleep_pool(pool, keep);
  } catch (const PoolStateError& error) {
    return error.what();
  }
  return "it sleeps";
}

}  // namespace

TEST(a_pool_that_stays_awake_says_what_keeps_it_awake) {
  const FakeDevice device = fixtures::device_with_streams();
  FakeMemory& memory = *device.memory;
  CachingAllocator& allocator = *device.allocator;
  Account* const pool = allocator.pools().open("model", nullptr, true, kNoLimit, kNoLimit);
  fixtures::set_current_pool(allocator, pool);
  void* const block = allocator.allocate(5 * kMiB, 1);
  fixtures::set_current_pool(allocator, nullptr);
  const std::string awake = "mempool: pool 'model' stays awake: ";
  const auto reason = [&] {
    memory.work(1);
    const std::string out = reason_to_stay_awake(allocator, *pool);
    CHECK(!allocator.pool_asleep(*pool));
    CHECK_EQ(allocator.arenas().check_invariants(), "");
    return out;
  };
  memory.refuse_events(true);
  CHECK_EQ(reason(), awake + "a stream of its device is being captured into a graph.");
  memory.fail_device(true);  // which outweighs the capture
  CHECK_EQ(reason(), awake + "its device has failed: the fake device has failed.");
  memory.refuse_events(false);
  CHECK_EQ(reason(), awake + "its device has failed: the fake device has failed.");
  memory.destroy_stream(1);
  CHECK_EQ(reason(), awake + "its device has failed: the fake device has failed.");
  memory.fail_device(false);
  memory.refuse_events(true);
  CHECK_EQ(reason(), awake + "a stream of its device is being captured into a graph.");
  memory.refuse_events(false);
  memory.finish(1);
  memory.create_stream(1);
  memory.fail_call(1);
  CHECK_EQ(reason(), awake + "the driver gives no event by which the work on its device could be waited for.");
  memory.fail_call(0);
  allocator.pin_handles(block);
  CHECK(reason().find("is shared with other processes") != std::string::npos);
  allocator.unpin(block);
  CHECK_EQ(reason_to_stay_awake(allocator, *pool), "it sleeps");
  allocator.wake_pool(*pool);
  allocator.deallocate(block);
  allocator.pools().drop(*pool);
  device.check_empty();
}

// Each call in turn fails: what is said is what has failed.
TEST(a_pool_names_the_call_that_failed_as_the_reason) {
  using Call = FakeMemory::Call;
  const std::vector<std::pair<Call, std::string>> reasons{{Call::record, "gives no event"},
                                                          {Call::unmap, "keeps memory mapped where it was"},
                                                          {Call::save, "stays awake: the fake backup has failed"},
                                                          {Call::decommit, "did not take its memory back"},
                                                          {Call::restore, "sleeps on: the fake backup has failed"}};
  std::vector<bool> seen(reasons.size());
  for (std::uint64_t n = 1; n < 40; ++n) {
    const FakeDevice device = fixtures::device_with_streams(40 * kMiB);
    CachingAllocator& allocator = *device.allocator;
    Account* const pool = allocator.pools().open("model", nullptr, true, kNoLimit, kNoLimit);
    fixtures::set_current_pool(allocator, pool);
    // Two free ranges become one while the stream is busy: the memory is mapped where it was, too.
    std::vector<void*> blocks;
    for (int i = 0; i < 5; ++i) blocks.push_back(allocator.allocate(8 * kMiB, 1));
    for (const std::size_t i : {1u, 3u}) allocator.deallocate(std::exchange(blocks[i], nullptr));
    device.memory->work(1);
    blocks.push_back(allocator.allocate(16 * kMiB, 1));
    fixtures::set_current_pool(allocator, nullptr);
    std::vector<std::uint64_t> before;
    for (const auto& [call, text] : reasons) before.push_back(device.memory->calls(call));
    std::string said;
    device.memory->fail_call(n);
    try {
      allocator.sleep_pool(*pool, true);
      allocator.wake_pool(*pool);
    } catch (const PoolStateError& error) {
      said = error.what();
    } catch (const OutOfMemory&) {
      CHECK(allocator.pool_asleep(*pool));
    }
    device.memory->fail_call(0);
    std::size_t named = 0;
    for (std::size_t i = 0; i < reasons.size(); ++i) {
      if (said.find(reasons[i].second) == std::string::npos) continue;
      CHECK(device.memory->calls(reasons[i].first) > before[i]);
      seen[i] = true;
      ++named;
    }
    CHECK_EQ(named, said.empty() ? 0u : 1u);
    if (allocator.pool_asleep(*pool)) allocator.wake_pool(*pool);
    for (void* const block : blocks) allocator.deallocate(block);
    allocator.pools().drop(*pool);
    device.check_empty();
  }
  CHECK(std::all_of(seen.begin(), seen.end(), [](bool each) { return each; }));
}

// The second of two arenas keeps its memory, and what the first gave up cannot be had again.
TEST(a_pool_that_sleeps_only_in_part_says_so_and_can_be_woken) {
  const FakeDevice device = fixtures::device_with_streams();
  CachingAllocator& allocator = *device.allocator;
  Account* const pool = allocator.pools().open("model", nullptr, true, kNoLimit, kNoLimit);
  fixtures::set_current_pool(allocator, pool);
  char* const blocks[] = {static_cast<char*>(allocator.allocate(4 * kMiB, 1)),
                          static_cast<char*>(allocator.allocate(4 * kMiB, 2))};
  fixtures::set_current_pool(allocator, nullptr);
  for (char* const block : blocks) std::memset(block, 7, 4 * kMiB);
  allocator.ledger().force_limit(6 * kMiB);
  bool is_found = false;
  for (std::uint64_t n = 1; n < 20 && !is_found; ++n) {
    device.memory->fail_call(n);
    const std::string said = reason_to_stay_awake(allocator, *pool);
    device.memory->fail_call(0);
    is_found = said.find("mempool: pool 'model' sleeps, but the system did not take all") == 0;
    CHECK_EQ(allocator.pool_asleep(*pool), is_found || said == "it sleeps");
    CHECK_EQ(allocator.arenas().check_invariants(), "");
    allocator.ledger().force_limit(kNoLimit);
    allocator.wake_pool(*pool);
    CHECK(!allocator.pool_asleep(*pool));
    for (const char* const block : blocks) CHECK_EQ(block[4 * kMiB - 1], 7);
    allocator.ledger().force_limit(6 * kMiB);
  }
  CHECK(is_found);
  allocator.ledger().force_limit(kNoLimit);
  for (char* const block : blocks) allocator.deallocate(block);
  allocator.pools().drop(*pool);
  device.check_empty();
}
