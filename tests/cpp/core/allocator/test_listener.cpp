// What a listener hears of the blocks of a device, and that history and recording hear of the same.
#include <cstdio>
#include <string>
#include <vector>

#include "core/allocator/caching_allocator.h"
#include "core/current_pool.h"
#include "core/failing_new.h"
#include "core/fixtures.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::kMiB;

namespace {

// Each event as a word, its stream and bytes asked for.
class Hearing final : public BlockListener {
 public:
  void on_alloc(const ObservedBlock& block) noexcept override { note("alloc", block); }
  void on_free(const ObservedBlock& block, bool waits) noexcept override { note(waits ? "waits" : "free", block); }
  void on_completed(const ObservedBlock& block) noexcept override { note("completed", block); }

  std::vector<std::string> events;
  std::vector<ObservedBlock> blocks;

 private:
  void note(const char* what, const ObservedBlock& block) {
    events.push_back(std::string(what) + " " + std::to_string(block.stream) + " " + std::to_string(block.size.asked));
    blocks.push_back(block);
  }
};

using Events = std::vector<std::string>;

}  // namespace

TEST(a_listener_hears_of_every_block_while_it_listens) {
  const FakeDevice device;
  CachingAllocator& allocator = *device.allocator;
  Hearing hearing;
  void* const before = allocator.allocate(10);
  allocator.observers().listen(&hearing);
  CHECK(allocator.observers().any());
  Account* const pool = allocator.pools().open("pool", nullptr, true, kNoLimit, kNoLimit);
  void* const first = allocator.allocate(100);
  fixtures::set_current_pool(allocator, pool);
  void* const second = allocator.allocate(3 * kMiB, 4);
  fixtures::set_current_pool(allocator, nullptr);
  allocator.deallocate(before);
  allocator.deallocate(second);
  CHECK(hearing.events == (Events{"alloc 0 100", "alloc 4 3145728", "free 0 10", "free 4 3145728"}));
  CHECK(hearing.blocks[0].address == first && hearing.blocks[1].address == second);
  CHECK_EQ(hearing.blocks[1].account, pool->id);
  CHECK(hearing.blocks[1].family == pool->family && hearing.blocks[3].family == pool->family);
  CHECK(hearing.blocks[0].family == &allocator.arenas().default_family());
  CHECK_EQ(hearing.blocks[0].size.rounded, block_bytes(first));
  allocator.observers().listen(nullptr);
  CHECK(!allocator.observers().any());
  allocator.deallocate(first);
  CHECK_EQ(hearing.events.size(), 4u);
  allocator.pools().drop(*pool);
  device.check_empty();
}

TEST(a_block_that_other_streams_use_completes_once_they_have_caught_up) {
  const FakeDevice device = fixtures::device_with_streams();
  CachingAllocator& allocator = *device.allocator;
  Hearing hearing;
  allocator.observers().listen(&hearing);
  void* const block = allocator.allocate(4 * kMiB, 1);
  allocator.add_use(block, 7);
  device.memory->work(7);
  allocator.deallocate(block);
  allocator.trim(kNoLimit);
  CHECK(hearing.events == (Events{"alloc 1 4194304", "waits 1 4194304"}));
  device.memory->finish(7);
  allocator.trim(kNoLimit);
  CHECK(hearing.events == (Events{"alloc 1 4194304", "waits 1 4194304", "completed 1 4194304"}));
  CHECK(hearing.blocks.back().address == block);
  allocator.observers().listen(nullptr);
  device.check_empty();
}

TEST(a_block_that_is_waited_for_without_a_record_completes_too) {
  const FakeDevice device = fixtures::device_with_streams();
  CachingAllocator& allocator = *device.allocator;
  Hearing hearing;
  hearing.events.reserve(8);
  hearing.blocks.reserve(8);
  void* const block = allocator.allocate(4 * kMiB, 1);
  allocator.add_use(block, 7);
  allocator.observers().listen(&hearing);
  // The listener's own strings are short: the first allocation that fails is that of the record.
  fixtures::fail_new(1);
  allocator.deallocate(block);
  CHECK_EQ(fixtures::fail_new(0), 0);
  CHECK(hearing.events == (Events{"waits 1 4194304", "completed 1 4194304"}));
  allocator.observers().listen(nullptr);
  device.check_empty();
}

// As those of a captured graph that is restored.
TEST(blocks_at_a_given_place_are_heard_of_by_all_observers) {
  const FakeDevice device;
  CachingAllocator& allocator = *device.allocator;
  ArenaFamily& family = allocator.arenas().open("graph", ArenaFamily::Kind::fixed);
  void* const small = allocator.allocate_from(family, 100, 0);
  void* const large = allocator.allocate_from(family, 5 * kMiB, 0);
  const std::vector<CachingAllocator::PlacedBlock> places = allocator.live_blocks(family);
  void* const other = allocator.allocate(3 * kMiB);
  allocator.deallocate(small);
  allocator.deallocate(large);
  allocator.deallocate(other);

  const std::string path = "/tmp/mempool_test_listener_" + std::to_string(reinterpret_cast<std::uintptr_t>(&device));
  Hearing hearing;
  allocator.observers().listen(&hearing);
  allocator.observers().start_history(10);
  CHECK(allocator.observers().start_recording(path));
  for (const CachingAllocator::PlacedBlock& place : places) CHECK(allocator.allocate_at(family, place));
  CHECK(allocator.allocate_exactly(3 * kMiB, other, 0));
  CHECK_EQ(allocator.observers().history().view().live.size(), 3u);
  for (void* const block : {small, large, other}) allocator.deallocate(block);
  CHECK_EQ(allocator.observers().stop_recording().events, 6u);
  CHECK_EQ(allocator.observers().history().view().events.size(), 6u);
  CHECK_EQ(hearing.events.size(), 6u);
  CHECK_EQ(hearing.events[2], "alloc 0 3145728");
  CHECK(hearing.blocks[0].family == &family && hearing.blocks[1].family == &family);
  CHECK(hearing.blocks[3].address == small && hearing.blocks[3].size.asked == 100);
  // Where something is live nothing is placed, and nobody hears of it.
  void* const live = allocator.allocate(3 * kMiB);
  CHECK(!allocator.allocate_exactly(3 * kMiB, live, 0));
  CHECK_EQ(hearing.events.size(), 7u);
  allocator.deallocate(live);
  allocator.observers().stop_history();
  allocator.observers().listen(nullptr);
  std::remove(path.c_str());
  allocator.arenas().close(family);
  device.check_empty();
}
