// Blocks that other streams use: when they serve a request again, and what noticing it costs.
#include <thread>
#include <vector>

#include "core/allocator/caching_allocator.h"
#include "core/current_pool.h"
#include "core/fixtures.h"

using namespace mempool;
using fixtures::device_with_streams;
using fixtures::FakeDevice;
using fixtures::kMiB;
using fixtures::waiting;
using fixtures::waiting_block;

namespace {

constexpr std::size_t kKiB = 1024;
constexpr std::size_t kSizes[] = {16,        100,        512,      3 * kKiB, 32 * kKiB,
                                  33 * kKiB, 100 * kKiB, 1 * kMiB, 5 * kMiB, 40 * kMiB};

std::uint64_t records(const FakeDevice& device) { return device.memory->calls(FakeMemory::Call::record); }

}  // namespace

TEST(a_block_serves_the_next_request_of_its_size_once_the_other_stream_has_caught_up) {
  for (const std::size_t bytes : kSizes) {
    const FakeDevice device = device_with_streams();
    std::vector<void*> live{device.allocator->allocate(bytes)};
    void* const block = waiting_block(device, bytes);
    for (int i = 0; i < 2; ++i) {
      live.push_back(device.allocator->allocate(bytes));
      CHECK(live.back() != block);
    }
    device.memory->finish(7);
    live.push_back(device.allocator->allocate(bytes));
    CHECK(live.back() == block);
    CHECK_EQ(waiting(device), 0);
    for (void* each : live) device.allocator->deallocate(each);
    device.check_empty();
  }
}

TEST(a_block_that_another_thread_has_freed_serves_the_next_request) {
  for (const std::size_t bytes : kSizes) {
    const FakeDevice device = device_with_streams();
    void* const block = fixtures::block_in_use(device, bytes);
    std::thread([&] { device.allocator->deallocate(block); }).join();
    device.memory->finish(7);
    void* const again = device.allocator->allocate(bytes);
    CHECK(again == block);
    device.allocator->deallocate(again);
    device.check_empty();
  }
}

// Their arenas have no cache in front of them.
TEST(blocks_of_isolated_pools_families_and_side_streams_come_back_at_once) {
  enum class Place { pool, isolated, family, side_stream };
  for (const Place place : {Place::pool, Place::isolated, Place::family, Place::side_stream}) {
    for (const std::size_t bytes : kSizes) {
      const FakeDevice device = device_with_streams();
      CachingAllocator& allocator = *device.allocator;
      const bool is_pool = place == Place::pool || place == Place::isolated;
      Account* const pool =
          is_pool ? allocator.pools().open("pool", nullptr, place == Place::isolated, kNoLimit, kNoLimit) : nullptr;
      ArenaFamily* const family =
          place == Place::family ? &allocator.arenas().open("graph", ArenaFamily::Kind::fixed) : nullptr;
      fixtures::set_current_pool(allocator, pool);
      const auto allocate = [&] {
        const StreamId stream = place == Place::side_stream ? 3 : 0;
        return family != nullptr ? allocator.allocate_from(*family, bytes, stream) : allocator.allocate(bytes, stream);
      };
      void* const block = allocate();
      void* const other = allocate();
      allocator.add_use(block, 7);
      device.memory->work(7);
      allocator.deallocate(block);
      device.memory->finish(7);
      void* const again = allocate();
      CHECK(again == block);
      CHECK_EQ(waiting(device), 0);
      for (void* each : {other, again}) allocator.deallocate(each);
      fixtures::set_current_pool(allocator, nullptr);
      if (pool != nullptr) allocator.pools().drop(*pool);
      if (family != nullptr) allocator.arenas().close(*family);
      device.check_empty();
    }
  }
}

TEST(a_request_asks_the_device_once_for_each_stream_and_only_while_its_size_waits) {
  for (const std::size_t bytes : kSizes) {
    if (bytes > kSmallPoolMax) continue;
    const FakeDevice device = device_with_streams();
    CachingAllocator& allocator = *device.allocator;
    const std::size_t other_bytes = 8 * bytes;
    std::vector<void*> live;  // so that free memory is there for both sizes, and no arena grows below
    for (const std::size_t each : {bytes, other_bytes}) {
      for (int i = 0; i < 2; ++i) live.push_back(allocator.allocate(each));
    }
    void* const block = allocator.allocate(bytes);
    for (const StreamId stream : {7, 8}) {
      allocator.add_use(block, stream);
      device.memory->work(stream);
    }
    allocator.deallocate(block);
    for (void* each : live) allocator.deallocate(each);
    const std::uint64_t before = records(device);
    for (int i = 0; i < 20; ++i) allocator.deallocate(allocator.allocate(other_bytes));
    CHECK_EQ(device.memory->queries(), 0u);
    for (int i = 0; i < 20; ++i) allocator.deallocate(allocator.allocate(bytes));
    CHECK_EQ(device.memory->queries(), 40u);
    CHECK_EQ(records(device) - before, 2u);
    device.memory->finish(7);
    allocator.deallocate(allocator.allocate(bytes));  // finds that of 7 done, that of 8 not
    CHECK_EQ(device.memory->queries(), 42u);
    device.memory->finish(8);
    for (int i = 0; i < 20; ++i) allocator.deallocate(allocator.allocate(bytes));
    CHECK_EQ(waiting(device), 0);
    CHECK_EQ(device.memory->queries(), 43u);
    CHECK_EQ(records(device) - before, 2u);
    device.check_empty();
  }
}

TEST(a_large_request_asks_the_device_before_its_arena_grows_and_not_earlier) {
  const FakeDevice device = device_with_streams();
  CachingAllocator& allocator = *device.allocator;
  void* const free = allocator.allocate(5 * kMiB);
  void* const block = fixtures::block_in_use(device, 5 * kMiB);
  allocator.deallocate(free);
  allocator.deallocate(block);
  device.memory->finish(7);
  void* const first = allocator.allocate(5 * kMiB);
  CHECK(first == free);
  CHECK_EQ(device.memory->queries(), 0u);
  const std::uint64_t commits = device.memory->calls(FakeMemory::Call::commit);
  void* const second = allocator.allocate(5 * kMiB);
  CHECK(second == block);
  CHECK_EQ(device.memory->queries(), 1u);
  CHECK_EQ(device.memory->calls(FakeMemory::Call::commit), commits);
  for (void* each : {first, second}) allocator.deallocate(each);
  device.check_empty();
}

TEST(small_blocks_that_were_freed_together_share_an_event) {
  const FakeDevice device = device_with_streams();
  std::vector<void*> blocks;
  for (int i = 0; i < 40; ++i) {
    blocks.push_back(device.allocator->allocate(16));
    device.allocator->add_use(blocks.back(), 7);
  }
  device.memory->work(7);
  for (void* block : blocks) device.allocator->deallocate(block);
  CHECK_EQ(records(device), 0u);
  device.memory->finish(7);
  device.allocator->deallocate(device.allocator->allocate(16));
  CHECK_EQ(waiting(device), 0);
  CHECK_EQ(records(device), 1u);
  CHECK_EQ(device.memory->queries(), 1u);
  device.check_empty();
}

TEST(a_request_of_a_size_that_waits_asks_nothing_while_the_stream_is_captured) {
  const FakeDevice device = device_with_streams();
  void* const block = waiting_block(device, 16);
  device.memory->finish(7);
  device.memory->refuse_events(true);
  void* const other = device.allocator->allocate(16);
  CHECK(other != block);
  CHECK_EQ(device.memory->queries(), 0u);
  device.memory->refuse_events(false);
  void* const again = device.allocator->allocate(16);
  CHECK(again == block);
  for (void* each : {other, again}) device.allocator->deallocate(each);
  device.check_empty();
}

TEST(observers_hear_of_requests_while_blocks_wait_and_after) {
  const FakeDevice device = device_with_streams();
  CachingAllocator& allocator = *device.allocator;
  allocator.observers().start_history(100);
  void* const block = waiting_block(device, 16);
  void* const other = allocator.allocate(16);
  CHECK_EQ(allocator.observers().history().view().live.count(reinterpret_cast<std::uintptr_t>(other)), 1u);
  device.memory->finish(7);
  void* const again = allocator.allocate(16);
  CHECK(again == block);
  CHECK_EQ(allocator.observers().history().view().live.size(), 2u);
  allocator.observers().stop_history();
  for (void* each : {other, again}) allocator.deallocate(each);
  device.check_empty();
}

TEST(the_place_of_a_block_that_waited_can_be_had_once_its_stream_has_caught_up) {
  for (const std::size_t bytes : {std::size_t{64} << 10, 5 * kMiB}) {
    const FakeDevice device = device_with_streams();
    void* const block = waiting_block(device, bytes);
    CHECK(!device.allocator->allocate_exactly(bytes, block, 0));
    device.memory->finish(7);
    CHECK(device.allocator->allocate_exactly(bytes, block, 0));
    device.allocator->deallocate(block);
    device.check_empty();
  }
}
