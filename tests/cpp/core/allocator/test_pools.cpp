// Pools of an allocator: memory of their own, and how long they live.
#include <cstdint>
#include <thread>

#include "core/allocator/caching_allocator.h"
#include "core/allocator/found_block.h"
#include "core/current_pool.h"
#include "core/fixtures.h"
#include "core/pages/size_classes.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::kMiB;

TEST(an_isolated_pool_has_memory_of_its_own_and_takes_it_along) {
  const FakeDevice device;
  Account* const pool = device.allocator->pools().open("own", nullptr, true, kNoLimit, kNoLimit);
  fixtures::set_current_pool(*device.allocator, pool);
  void* const small = device.allocator->allocate(100);
  void* const large = device.allocator->allocate(5 * kMiB);
  fixtures::set_current_pool(*device.allocator, nullptr);
  void* const outside = device.allocator->allocate(100);
  CHECK_EQ(device.allocator->pools().held_bytes(*pool), 8 * kMiB);
  CHECK_EQ(device.allocator->ledger().held(), 10 * kMiB);
  CHECK_EQ(device.allocator->accounts().read(*pool).blocks.bytes.current,
           static_cast<std::int64_t>(round_block(100) + round_block(5 * kMiB)));
  device.allocator->deallocate(large);
  CHECK_EQ(device.allocator->trim_pool(*pool), 6 * kMiB);
  CHECK_EQ(device.allocator->check_invariants(), "");
  device.allocator->pools().drop(*pool);
  CHECK_EQ(device.allocator->ledger().held(), 4 * kMiB);  // a block is still live
  device.allocator->deallocate(small);
  CHECK_EQ(device.allocator->ledger().held(), 2 * kMiB);
  device.allocator->deallocate(outside);
  device.check_empty();
}

TEST(a_closed_pool_refuses_new_blocks) {
  const FakeDevice device;
  Account* const pool = device.allocator->pools().open("p", nullptr, false, kNoLimit, kNoLimit);
  fixtures::set_current_pool(*device.allocator, pool);
  device.allocator->pools().close(*pool);
  CHECK_THROWS(PoolClosedError, device.allocator->allocate(1));
  CHECK_EQ(device.allocated(), 0);
  fixtures::set_current_pool(*device.allocator, nullptr);
  device.allocator->pools().drop(*pool);
  device.check_empty();
}

TEST(a_pool_left_current_is_kept_alive_by_its_thread) {
  const FakeDevice device;
  std::thread([&] {
    Account* const pool = device.allocator->pools().open("left", nullptr, true, kNoLimit, kNoLimit);
    fixtures::set_current_pool(*device.allocator, pool);
    device.allocator->pools().drop(*pool);
    CHECK_THROWS(PoolClosedError, device.allocator->allocate(100));
  }).join();
  Account* const next = device.allocator->pools().open("next", nullptr, false, kNoLimit, kNoLimit);
  CHECK_EQ(next->id, 1u);  // the record of the first is free again
  device.allocator->pools().drop(*next);
  device.check_empty();
}

TEST(what_waits_in_a_thread_cache_serves_an_isolated_pool_before_new_memory) {
  FakeDevice device;
  std::vector<void*> blocks;
  for (int i = 0; i < 120; ++i) blocks.push_back(device.allocator->allocate(kMiB));
  for (void* const block : blocks) device.allocator->deallocate(block);
  const std::size_t held = device.allocator->ledger().held();
  Account* const pool = device.allocator->pools().open("pool", nullptr, true, kNoLimit, kNoLimit);
  fixtures::set_current_pool(*device.allocator, pool);
  void* const large = device.allocator->allocate(64 * kMiB);
  fixtures::set_current_pool(*device.allocator, nullptr);
  CHECK_EQ(device.allocator->ledger().held(), held);
  device.allocator->deallocate(large);
  device.allocator->pools().drop(*pool);
  device.check_empty();
}
