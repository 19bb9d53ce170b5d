// What an allocator reports: statistics, snapshots, history.
#include <cstdint>

#include "core/allocator/caching_allocator.h"
#include "core/current_pool.h"
#include "core/fixtures.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::kMiB;

TEST(history_knows_live_blocks_and_the_last_events) {
  const FakeDevice device;
  void* const before = device.allocator->allocate(10);
  device.allocator->observers().start_history(3);
  void* const first = device.allocator->allocate(100);
  void* const second = device.allocator->allocate(5 * kMiB);
  device.allocator->deallocate(before);
  device.allocator->deallocate(first);
  device.allocator->deallocate(device.allocator->allocate(100));
  const History::View view = device.allocator->observers().history().view();
  CHECK_EQ(view.live.size(), 1u);
  CHECK_EQ(view.live.begin()->second.requested, 5 * kMiB);
  CHECK_EQ(view.events.size(), 3u);
  CHECK_EQ(view.dropped, 2u);
  CHECK(view.events.back().action == HistoryEvent::Action::free);
  device.allocator->observers().stop_history();
  device.allocator->deallocate(second);
  device.check_empty();
}

TEST(a_snapshot_covers_every_held_byte) {
  const FakeDevice device;
  Account* const pool = device.allocator->pools().open("own", nullptr, true, kNoLimit, kNoLimit);
  std::vector<void*> blocks;
  for (const std::size_t bytes : {100u, 3000u, 50000u, 3000000u}) {
    for (Account* where : {static_cast<Account*>(nullptr), pool}) {
      fixtures::set_current_pool(*device.allocator, where);
      blocks.push_back(device.allocator->allocate(bytes));
    }
  }
  fixtures::set_current_pool(*device.allocator, nullptr);
  std::size_t total = 0;
  std::size_t live = 0;
  std::size_t requested = 0;
  const Snapshot taken = device.allocator->snapshot();
  for (const SnapshotSegment& segment : taken.segments) {
    std::uintptr_t end = segment.address;
    for (const SnapshotBlock& block : taken.blocks_of(segment)) {
      CHECK_EQ(block.address, end);
      end += block.bytes;
      live += block.live;
      requested += block.requested;
      CHECK_EQ(block.live && block.account != 0, block.live && segment.arena == "own");
    }
    CHECK_EQ(end, segment.address + segment.bytes);
    total += segment.bytes;
  }
  CHECK_EQ(total, device.allocator->ledger().held());
  CHECK_EQ(live, blocks.size());
  CHECK_EQ(requested, 2u * (100 + 3000 + 50000 + 3000000));
  for (void* block : blocks) device.allocator->deallocate(block);
  device.allocator->pools().drop(*pool);
  device.check_empty();
}

TEST(statistics_name_current_peak_and_sums) {
  const FakeDevice device;
  void* const small = device.allocator->allocate(1000);
  void* const large = device.allocator->allocate(2 * kMiB);
  device.allocator->deallocate(large);
  CHECK_EQ(device.allocator->stats().free_ranges.bytes.large.current, 0);  // it waits in this thread's cache
  device.allocator->trim(kNoLimit);
  const DeviceStats stats = device.allocator->stats();
  CHECK_EQ(stats.blocks.all.bytes.current, 1024);
  CHECK_EQ(stats.blocks.all.bytes.peak, static_cast<std::int64_t>(2 * kMiB + 1024));
  CHECK_EQ(stats.blocks.all.bytes.allocated, static_cast<std::int64_t>(2 * kMiB + 1024));
  CHECK_EQ(stats.blocks.all.bytes.freed, static_cast<std::int64_t>(2 * kMiB));
  CHECK_EQ(stats.blocks.small.requested.current, 1000);
  CHECK_EQ(stats.blocks.large.count.freed, 1);
  CHECK_EQ(stats.reserved_bytes.small.current, static_cast<std::int64_t>(2 * kMiB));
  CHECK_EQ(stats.reserved_bytes.large.current, static_cast<std::int64_t>(2 * kMiB));
  CHECK_EQ(stats.free_ranges.bytes.large.current, static_cast<std::int64_t>(2 * kMiB));
  device.allocator->reset_peaks();
  device.allocator->reset_sums();
  CHECK_EQ(device.allocator->stats().blocks.all.bytes.peak, 1024);
  CHECK_EQ(device.allocator->stats().blocks.all.bytes.allocated, 0);
  device.allocator->deallocate(small);
  device.check_empty();
}

TEST(sizes_around_four_gibibytes_are_live_in_a_snapshot) {
  const FakeDevice device({}, {.accessible = false});
  for (const std::size_t bytes : {(std::size_t{1} << 32) - 1, std::size_t{1} << 32, (std::size_t{1} << 32) + 5}) {
    void* const block = device.allocator->allocate(bytes);
    CHECK_EQ(device.allocator->check_invariants(), "");
    CHECK_EQ(device.allocator->snapshot().blocks[0].requested, bytes);
    device.allocator->deallocate(block);
  }
  device.check_empty();
}
