// Every backend call in turn is made to fail: what was asked for fails or succeeds as a whole, and nothing is lost.
#include <random>

#include "core/current_pool.h"
#include "core/failing_new.h"
#include "core/fixtures.h"
#include "core/in_threads.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::in_threads;
using fixtures::kMiB;

namespace {

// Frees every second of some large blocks, and asks for one that only all of their ranges together can hold.
int make_scattered_range(CachingAllocator& allocator, std::vector<void*>& blocks) {
  int refused = 0;
  const auto allocate = [&](std::size_t bytes) -> void* {
    try {
      return allocator.allocate(bytes);
    } catch (const OutOfMemory&) {
      ++refused;
      return nullptr;
    }
  };
  std::vector<void*> scattered;
  for (int i = 0; i < 8; ++i) scattered.push_back(allocate(6 * kMiB));
  for (std::size_t i = 0; i < scattered.size(); ++i) {
    if (i % 2 == 0) {
      allocator.deallocate(scattered[i]);
    } else {
      blocks.push_back(scattered[i]);
    }
  }
  blocks.push_back(allocate(22 * kMiB));
  return refused;
}

void sleep_and_wake(CachingAllocator& allocator, Account& pool) {
  try {
    allocator.sleep_pool(pool, true);
  } catch (const PoolStateError&) {
    CHECK(!allocator.pool_asleep(pool));
  }
  while (allocator.pool_asleep(pool)) {  // one call fails, so the second try at the latest succeeds
    try {
      allocator.wake_pool(pool);
    } catch (const OutOfMemory&) {
      CHECK_EQ(allocator.arenas().check_invariants(), "");
    } catch (const PoolStateError&) {  // its contents could not be read back
      CHECK_EQ(allocator.arenas().check_invariants(), "");
    }
  }
}

// A fixed sequence that reaches every backend call. Returns how many allocations were refused.
int run_sequence(const FakeDevice& device) {
  CachingAllocator& allocator = *device.allocator;
  std::mt19937 random(3);
  std::vector<void*> blocks;
  int refused = 0;
  Account* const pool = allocator.pools().open("own", nullptr, true, kNoLimit, kNoLimit);
  for (int step = 0; step < 120; ++step) {
    fixtures::set_current_pool(allocator, step % 3 == 0 ? pool : nullptr);
    const std::size_t bytes = std::size_t{1} << (6 + random() % 18);
    try {
      blocks.push_back(allocator.allocate(bytes + random() % bytes));
    } catch (const OutOfMemory&) {
      ++refused;
    }
    if (step % 2 == 1 && !blocks.empty()) {
      std::swap(blocks[random() % blocks.size()], blocks.back());
      allocator.deallocate(blocks.back());
      blocks.pop_back();
    }
    if (step % 10 == 9) allocator.trim(allocator.ledger().held() / 2);
    if (step % 40 == 20) allocator.defragment();
    if (step == 70) sleep_and_wake(allocator, *pool);
    CHECK_EQ(allocator.check_invariants(), "");
  }
  fixtures::set_current_pool(allocator, nullptr);
  refused += make_scattered_range(allocator, blocks);
  CHECK_EQ(allocator.check_invariants(), "");
  for (void* block : blocks) allocator.deallocate(block);
  allocator.pools().drop(*pool);
  return refused;
}

}  // namespace

TEST(every_backend_call_may_fail) {
  for (const FakeMemory::Settings& settings : fixtures::personalities()) {
    const Options options{.segment_bytes = 8 * kMiB};
    std::uint64_t calls = 0;
    {
      const FakeDevice device(options, settings);
      CHECK_EQ(run_sequence(device), 0);
      device.check_empty();
      calls = device.memory->fallible_calls();
      CHECK(device.memory->calls(FakeMemory::Call::decommit) > 0);
      CHECK(device.memory->calls(FakeMemory::Call::move) > 0);
      if (settings.personality == FakeMemory::Personality::host) {
        CHECK(device.memory->calls(FakeMemory::Call::cut) > 0);
        CHECK(device.memory->calls(FakeMemory::Call::join) > 0);
      }
    }
    for (std::uint64_t n = 1; n <= calls; ++n) {
      const FakeDevice device(options, settings);
      device.memory->fail_call(n);
      run_sequence(device);
      device.memory->fail_call(0);
      device.check_empty();
    }
  }
}

TEST(ten_thousand_refusals_change_nothing) {
  const FakeDevice device({.limit = 8 * kMiB});
  void* const block = device.allocator->allocate(5 * kMiB);
  const std::size_t held = device.allocator->ledger().held();
  for (int i = 0; i < 10000; ++i) CHECK_THROWS(OutOfMemory, device.allocator->allocate(5 * kMiB));
  CHECK_EQ(device.allocated(), static_cast<std::int64_t>(5 * kMiB));
  CHECK_EQ(device.allocator->ledger().held(), held);
  CHECK_EQ(device.allocator->stats().ooms(), 10000);
  device.allocator->deallocate(block);
  device.check_empty();
}

TEST(without_memory_for_a_larger_bin_a_cache_gives_blocks_back) {
  const FakeDevice device;
  CachingAllocator& allocator = *device.allocator;
  std::vector<void*> blocks;
  for (int i = 0; i < 128; ++i) blocks.push_back(allocator.allocate(4096));
  const std::int64_t in_use = allocator.stats().free_ranges.bytes.all.current;
  int failed = 0;
  for (void* block : blocks) {
    fixtures::fail_new(1);  // whichever of them needs some
    CHECK(allocator.deallocate(block));
    if (fixtures::fail_new(0) == 0) ++failed;
  }
  CHECK(failed > 0);
  CHECK(allocator.stats().free_ranges.bytes.all.current > in_use);  // slabs that became empty
  device.check_empty();
}

TEST(without_memory_for_a_bin_blocks_come_one_by_one) {
  const FakeDevice device;
  CachingAllocator& allocator = *device.allocator;
  void* const first = allocator.allocate(4096);  // makes the thread's cache, its bin, the segment and the slab
  std::vector<void*> blocks;
  in_threads(1, [&](int) {
    allocator.deallocate(allocator.allocate(64));  // a cache that has no bin for 4 KiB
    for (int i = 0; i < 8; ++i) {
      fixtures::fail_new(1);
      blocks.push_back(allocator.allocate(4096));
      CHECK_EQ(fixtures::fail_new(0), 0);
    }
  });
  blocks.push_back(first);
  for (void* block : blocks) CHECK(allocator.deallocate(block));
  device.check_empty();
}
