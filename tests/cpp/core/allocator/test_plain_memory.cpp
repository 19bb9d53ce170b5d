// Memory that comes with its address: whole segments, nothing moves, nothing sleeps.
#include <random>
#include <vector>

#include "common/errors.h"
#include "core/allocator/caching_allocator.h"
#include "core/fixtures.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::kMiB;

namespace {

FakeDevice make_plain(std::size_t capacity = SIZE_MAX, const Options& options = {}) {
  return FakeDevice(options, {.personality = FakeMemory::Personality::plain, .capacity_bytes = capacity});
}

}  // namespace

TEST(what_is_held_is_what_the_device_gave) {
  const FakeDevice device = make_plain(300 * kMiB, {.thread_cache_bytes = 0});
  CachingAllocator& allocator = *device.allocator;
  std::mt19937 random(3);
  std::vector<std::pair<unsigned char*, std::size_t>> live;
  std::size_t refused = 0;
  for (int step = 0; step < 5000; ++step) {
    if (live.empty() || random() % 2 == 0) {
      const std::size_t bytes = 1 + random() % (random() % 4 == 0 ? 40 * kMiB : kMiB / 4);
      try {
        auto* const block = static_cast<unsigned char*>(allocator.allocate(bytes));
        block[0] = block[bytes - 1] = static_cast<unsigned char>(bytes);
        live.emplace_back(block, bytes);
      } catch (const OutOfMemory&) {
        ++refused;
      }
    } else {
      std::swap(live[random() % live.size()], live.back());
      const auto [block, bytes] = live.back();
      CHECK_EQ(block[0], static_cast<unsigned char>(bytes));
      CHECK_EQ(block[bytes - 1], static_cast<unsigned char>(bytes));
      allocator.deallocate(block);
      live.pop_back();
    }
    CHECK_EQ(allocator.ledger().held(), device.memory->reserved_bytes());
    if (step % 500 == 0) CHECK_EQ(allocator.check_invariants(), "");
  }
  CHECK(refused > 0);
  CHECK_EQ(allocator.defragment().moves, 0u);
  for (const auto& [block, bytes] : live) allocator.deallocate(block);
  device.check_empty();
}

TEST(small_blocks_share_a_segment_and_large_ones_have_their_own) {
  const FakeDevice device = make_plain();
  CachingAllocator& allocator = *device.allocator;
  std::vector<void*> blocks;
  for (int i = 0; i < 4; ++i) blocks.push_back(allocator.allocate(4 * kMiB));
  CHECK_EQ(device.memory->reserved_bytes(), 20 * kMiB);
  blocks.push_back(allocator.allocate(31 * kMiB));
  CHECK_EQ(device.memory->reserved_bytes(), 52 * kMiB);
  for (void* const block : blocks) allocator.deallocate(block);
  device.check_empty();
}

TEST(a_limit_keeps_nothing_of_what_it_refuses) {
  const FakeDevice device = make_plain();
  CachingAllocator& allocator = *device.allocator;
  allocator.set_limit(30 * kMiB);
  void* const block = allocator.allocate(4 * kMiB);
  CHECK_THROWS(OutOfMemory, allocator.allocate(24 * kMiB));
  CHECK_EQ(device.memory->reserved_bytes(), 20 * kMiB);
  allocator.deallocate(block);
  allocator.deallocate(allocator.allocate(24 * kMiB));  // the first segment goes for it
  device.check_empty();
}

TEST(a_limit_that_a_shared_segment_passes_still_has_room_for_the_block) {
  const FakeDevice device = make_plain();
  CachingAllocator& allocator = *device.allocator;
  allocator.set_limit(16 * kMiB);
  void* const block = allocator.allocate(2 * kMiB);
  CHECK_EQ(device.memory->reserved_bytes(), 2 * kMiB);
  CHECK_THROWS(OutOfMemory, allocator.allocate(64 * kMiB));
  CHECK_EQ(device.memory->calls(FakeMemory::Call::reserve_addresses), 1u);  // nothing was taken to be refused
  allocator.deallocate(block);
  device.check_empty();
}

TEST(plain_memory_waits_for_the_streams_that_use_it) {
  const FakeDevice device(
      {}, {.personality = FakeMemory::Personality::plain, .capacity_bytes = 64 * kMiB, .has_streams = true});
  CachingAllocator& allocator = *device.allocator;
  void* const block = allocator.allocate(40 * kMiB, 0);
  allocator.add_use(block, 1);
  device.memory->work(0);
  device.memory->work(1);
  allocator.deallocate(block);
  CHECK_EQ(allocator.trim(0, false), 0u);
  void* const other = allocator.allocate(30 * kMiB, 2);  // there is room only once both streams are done
  CHECK_EQ(device.memory->reserved_bytes(), 30 * kMiB);
  CHECK(device.memory->waits() > 0);
  allocator.deallocate(other);
  device.check_empty();
}

TEST(a_pool_of_plain_memory_cannot_sleep) {
  const FakeDevice device = make_plain();
  Account* const pool = device.allocator->pools().open("weights", nullptr, true, kNoLimit, kNoLimit);
  CHECK_THROWS(ConfigError, device.allocator->sleep_pool(*pool, false));
  device.allocator->pools().drop(*pool);
  device.check_empty();
}

TEST(every_call_for_plain_memory_may_fail) {
  for (std::uint64_t nth = 1; nth < 40; ++nth) {
    const FakeDevice device = make_plain(64 * kMiB);
    CachingAllocator& allocator = *device.allocator;
    device.memory->fail_call(nth);
    std::vector<void*> blocks;
    for (int i = 0; i < 12; ++i) {
      try {
        blocks.push_back(allocator.allocate((i % 3 == 0 ? 12 : 3) * kMiB));
      } catch (const OutOfMemory&) {
        if (blocks.empty()) continue;
        allocator.deallocate(blocks.back());
        blocks.pop_back();
      }
      CHECK_EQ(allocator.check_invariants(), "");
    }
    for (void* const block : blocks) allocator.deallocate(block);
    device.memory->fail_call(0);
    device.check_empty();
  }
}
