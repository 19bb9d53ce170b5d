// Blocks of several streams: which free memory may be used again, and when.
#include <array>
#include <random>
#include <utility>
#include <vector>

#include "core/allocator/caching_allocator.h"
#include "core/current_pool.h"
#include "core/fixtures.h"

using namespace mempool;
using fixtures::device_with_streams;
using fixtures::FakeDevice;
using fixtures::kMiB;
using fixtures::waiting;

TEST(a_block_serves_its_own_stream_again_at_once) {
  const FakeDevice device = device_with_streams();
  for (const std::size_t bytes : {std::size_t{100}, 100 * std::size_t{1024}, 5 * kMiB}) {
    void* const block = device.allocator->allocate(bytes, 1);
    device.memory->work(1);
    device.allocator->deallocate(block);
    void* const again = device.allocator->allocate(bytes, 1);
    CHECK(again == block);
    device.allocator->deallocate(again);
  }
  CHECK_EQ(device.memory->waits(), 0u);
  device.memory->finish(1);
  device.check_empty();
}

TEST(another_stream_gets_memory_only_when_the_first_has_caught_up) {
  const FakeDevice device = device_with_streams(20 * kMiB);
  void* const block = device.allocator->allocate(12 * kMiB, 1);
  device.memory->work(1);
  device.allocator->deallocate(block);
  device.allocator->trim(kNoLimit);                             // out of the cache
  void* const small = device.allocator->allocate(8 * kMiB, 2);  // new memory: the other is in use
  CHECK_EQ(device.allocator->ledger().held(), 20 * kMiB);
  CHECK_EQ(device.memory->waits(), 0u);
  device.memory->finish(1);
  void* const other = device.allocator->allocate(12 * kMiB, 2);  // moved here, no new memory and no wait
  CHECK_EQ(device.allocator->stats().moved_bytes, static_cast<std::int64_t>(12 * kMiB));
  CHECK_EQ(device.memory->waits(), 0u);
  device.allocator->deallocate(small);
  device.allocator->deallocate(other);
  device.check_empty();
}

TEST(out_of_memory_waits_for_what_other_streams_have_freed) {
  const FakeDevice device = device_with_streams(12 * kMiB);
  void* const block = device.allocator->allocate(12 * kMiB, 1);
  device.memory->work(1);
  device.allocator->deallocate(block);
  void* const other = device.allocator->allocate(10 * kMiB, 2);
  CHECK_EQ(device.memory->waits(), 1u);
  CHECK_EQ(device.allocator->stats().ooms(), 0);
  device.allocator->deallocate(other);
  device.check_empty();
}

TEST(a_block_that_another_stream_uses_waits_for_it) {
  for (const std::size_t bytes : {std::size_t{100}, 100 * std::size_t{1024}, 5 * kMiB}) {
    const FakeDevice device = device_with_streams();
    void* const block = device.allocator->allocate(bytes);
    CHECK(device.allocator->add_use(block, 7));
    device.memory->work(7);
    device.allocator->deallocate(block);
    CHECK_EQ(device.allocated(), 0);
    CHECK_EQ(waiting(device), 1);
    CHECK_EQ(device.allocator->stats().active.all.count.current, 1);
    CHECK(!device.allocator->deallocate(block));  // freed is freed
    CHECK(!device.allocator->add_use(block, 8));
    void* const other = device.allocator->allocate(bytes);
    CHECK(other != block);
    device.memory->finish(7);
    device.allocator->trim(kNoLimit);
    CHECK_EQ(waiting(device), 0);
    device.allocator->deallocate(other);
    device.check_empty();
  }
}

TEST(a_use_on_its_own_stream_is_none) {
  const FakeDevice device = device_with_streams();
  void* const block = device.allocator->allocate(5 * kMiB, 3);
  CHECK(device.allocator->add_use(block, 3));
  device.memory->work(3);
  device.allocator->deallocate(block);
  CHECK_EQ(waiting(device), 0);
  int dummy = 0;
  CHECK(!device.allocator->add_use(&dummy, 3));
  CHECK(!device.allocator->add_use(static_cast<char*>(block) + 64, 3));
  device.memory->finish(3);
  device.check_empty();
}

TEST(at_the_end_of_memory_the_oldest_that_will_do_is_waited_for) {
  const FakeDevice device = device_with_streams(30 * kMiB);
  std::vector<void*> blocks;
  for (const std::size_t mib : {4u, 12u, 12u}) {
    blocks.push_back(device.allocator->allocate(mib * kMiB));
    device.allocator->add_use(blocks.back(), 7);
  }
  for (void* block : blocks) {
    device.memory->work(7);
    device.allocator->deallocate(block);
  }
  CHECK_EQ(waiting(device), 3);
  void* const first = device.allocator->allocate(12 * kMiB);
  CHECK_EQ(device.memory->waits(), 1u);
  CHECK(first == blocks[0]);  // which lies before it, and came before it in the stream
  CHECK_EQ(waiting(device), 1);
  device.allocator->deallocate(first);
  device.memory->finish(7);
  device.check_empty();
}

TEST(nothing_is_forgotten_while_a_stream_gives_no_events) {
  const FakeDevice device = device_with_streams(12 * kMiB);
  void* const block = device.allocator->allocate(10 * kMiB);
  device.allocator->add_use(block, 7);
  device.memory->work(7);
  device.memory->refuse_events(true);  // a capture
  device.allocator->deallocate(block);
  CHECK_THROWS(OutOfMemory, device.allocator->allocate(8 * kMiB));
  device.memory->refuse_events(false);
  void* const after = device.allocator->allocate(8 * kMiB);
  CHECK_EQ(device.memory->waits(), 1u);
  device.allocator->deallocate(after);
  device.check_empty();
}

TEST(memory_that_moved_stays_mapped_until_its_stream_has_caught_up) {
  const FakeDevice device = device_with_streams();
  std::vector<void*> blocks;
  for (int i = 0; i < 8; ++i) blocks.push_back(device.allocator->allocate(4 * kMiB));
  std::memset(blocks[0], 5, 4 * kMiB);
  for (std::size_t i = 0; i < blocks.size(); i += 2) {
    device.memory->work(0);
    device.allocator->deallocate(blocks[i]);
  }
  const std::size_t held = device.allocator->ledger().held();
  void* const wide = device.allocator->allocate(16 * kMiB);
  CHECK_EQ(device.allocator->ledger().held(), held);
  CHECK_EQ(device.memory->waits(), 0u);
  CHECK_EQ(static_cast<char*>(blocks[0])[kMiB], 5);  // the kernel that reads this is not done
  CHECK_EQ(device.memory->calls(FakeMemory::Call::unmap), 0u);
  CHECK_EQ(device.allocator->check_invariants(), "");
  device.memory->finish(0);
  device.allocator->trim(kNoLimit);
  CHECK(device.memory->calls(FakeMemory::Call::unmap) > 0);
  device.allocator->deallocate(wide);
  for (std::size_t i = 1; i < blocks.size(); i += 2) device.allocator->deallocate(blocks[i]);
  device.check_empty();
}

TEST(no_memory_moves_out_of_a_fixed_family) {
  const FakeDevice device = device_with_streams();
  ArenaFamily& graphs = device.allocator->arenas().open("graph", ArenaFamily::Kind::fixed);
  std::vector<void*> blocks;
  for (int i = 0; i < 8; ++i) blocks.push_back(device.allocator->allocate_from(graphs, 4 * kMiB, 0));
  for (std::size_t i = 0; i < blocks.size(); i += 2) {
    std::memset(blocks[i], static_cast<int>(i) + 1, 4 * kMiB);
    device.allocator->deallocate(blocks[i]);
  }
  device.allocator->defragment();
  device.allocator->trim(0);
  CHECK_EQ(device.allocator->trim_family(graphs), 0u);
  CHECK_EQ(device.allocator->ledger().held(), 32 * kMiB);
  void* const wide = device.allocator->allocate(16 * kMiB);
  void* const inside = device.allocator->allocate_from(graphs, 16 * kMiB, 0);
  CHECK_EQ(device.allocator->stats().moves, 0);
  // What a captured kernel has written is where the next replay expects it.
  for (std::size_t i = 0; i < blocks.size(); i += 2) {
    CHECK_EQ(static_cast<char*>(blocks[i])[kMiB], static_cast<char>(i + 1));
  }
  void* const again = device.allocator->allocate_from(graphs, 4 * kMiB, 0);
  CHECK(again == blocks[0] || again == blocks[2] || again == blocks[4] || again == blocks[6]);
  for (void* block : {wide, inside, again}) device.allocator->deallocate(block);
  for (std::size_t i = 1; i < blocks.size(); i += 2) device.allocator->deallocate(blocks[i]);
  CHECK(device.allocator->arenas().held_bytes(graphs) > 0);
  device.allocator->arenas().close(graphs);
  device.check_empty();
}

TEST(a_fixed_family_takes_what_is_idle_elsewhere) {
  const FakeDevice device = device_with_streams();
  void* const block = device.allocator->allocate(32 * kMiB);
  device.allocator->deallocate(block);
  const std::size_t held = device.allocator->ledger().held();
  ArenaFamily& graphs = device.allocator->arenas().open("graph", ArenaFamily::Kind::fixed);
  void* const inside = device.allocator->allocate_from(graphs, 32 * kMiB, 0);
  CHECK_EQ(device.allocator->ledger().held(), held);
  device.allocator->arenas().close(graphs);
  CHECK_EQ(device.allocator->check_invariants(), "");
  device.allocator->deallocate(inside);  // after the family was closed
  device.check_empty();
}

// A graph runs on whatever stream it is replayed on, and says nothing of it.
TEST(a_closed_family_gives_its_memory_back_only_when_the_device_is_at_rest) {
  const FakeDevice device = device_with_streams();
  ArenaFamily& graphs = device.allocator->arenas().open("graph", ArenaFamily::Kind::fixed);
  device.allocator->deallocate(device.allocator->allocate_from(graphs, 8 * kMiB, 1));
  device.memory->work(2);  // a replay
  device.allocator->arenas().close(graphs);
  CHECK_EQ(device.allocator->ledger().held(), 8 * kMiB);
  CHECK_EQ(device.memory->waits(), 0u);
  device.memory->refuse_events(true);
  device.allocator->trim(0);
  CHECK_EQ(device.allocator->ledger().held(), 8 * kMiB);
  device.memory->refuse_events(false);
  device.allocator->trim(0);
  CHECK_EQ(device.memory->waits(), 1u);
  CHECK_EQ(device.allocator->ledger().held(), 0u);
  device.check_empty();
}

TEST(a_pool_lives_as_long_as_a_block_of_it_waits) {
  const FakeDevice device = device_with_streams();
  CachingAllocator& allocator = *device.allocator;
  Account* const pool = allocator.pools().open("weights", nullptr, true, kNoLimit, kNoLimit);
  fixtures::set_current_pool(allocator, pool);
  void* const block = allocator.allocate(4 * kMiB);
  fixtures::set_current_pool(allocator, nullptr);
  allocator.add_use(block, 7);
  allocator.sleep_pool(*pool, true);
  device.memory->work(7);
  allocator.deallocate(block);
  allocator.pools().drop(*pool);
  CHECK_EQ(waiting(device), 1);
  CHECK_EQ(allocator.arenas().check_invariants(), "");
  device.memory->finish(7);
  allocator.trim(kNoLimit);
  CHECK_EQ(waiting(device), 0);
  device.check_empty();
}

TEST(what_nobody_frees_records_no_events) {
  const FakeDevice device = device_with_streams(SIZE_MAX, {.decay_ms = 1000});
  void* const block = device.allocator->allocate(4 * kMiB);
  device.allocator->decay(0);
  const std::uint64_t events = device.memory->calls(FakeMemory::Call::record);
  for (int tick = 1; tick < 100; ++tick) device.allocator->decay(40 * tick);
  CHECK_EQ(device.memory->calls(FakeMemory::Call::record), events);
  device.allocator->deallocate(block);
  device.check_empty();
}

TEST(a_thread_that_changes_over_takes_its_cache_along) {
  const FakeDevice device = device_with_streams();
  for (int i = 0; i < 100; ++i) device.allocator->deallocate(device.allocator->allocate(6 * kMiB, 9));
  void* const block = device.allocator->allocate(6 * kMiB, 9);
  device.allocator->deallocate(block);
  // In the cache, and so in no free range of an arena.
  CHECK_EQ(device.allocator->stats().free_ranges.bytes.all.current, 0);
  void* const other = device.allocator->allocate(6 * kMiB, 0);
  CHECK(other != block);
  device.allocator->deallocate(other);
  device.check_empty();
}

TEST(a_large_block_in_the_cache_is_a_place_for_another_size) {
  const FakeDevice device = device_with_streams();
  CachingAllocator& allocator = *device.allocator;
  std::array<void*, 4> blocks{};  // two that go, each with one behind it that stays
  for (std::size_t i = 0; i < 4; ++i) blocks[i] = allocator.allocate((i == 0 ? 12 : 8) * kMiB, 0);
  allocator.deallocate(blocks[0]);
  allocator.deallocate(blocks[2]);
  CHECK_EQ(allocator.stats().free_ranges.bytes.all.current, std::int64_t{12 * kMiB});
  void* const best = allocator.allocate(7 * kMiB, 0);
  CHECK(best == blocks[2]);
  for (void* const block : {best, blocks[1], blocks[3]}) allocator.deallocate(block);
  device.check_empty();
}

TEST(handles_are_small_while_much_is_stranded_in_large_ones) {
  for (const bool stranded : {false, true}) {
    const FakeDevice device = device_with_streams();
    CachingAllocator& allocator = *device.allocator;
    constexpr std::size_t kHandle = 128 * kMiB;
    std::vector<void*> blocks;
    for (int i = 0; i < 4; ++i) blocks.push_back(allocator.allocate(kHandle, 0));
    for (void* const block : std::exchange(blocks, {})) allocator.deallocate(block);
    std::vector<void*> fronts;
    for (int i = 0; i < 4; ++i) {
      fronts.push_back(allocator.allocate(kHandle - 2 * kMiB, 0));
      blocks.push_back(allocator.allocate(2 * kMiB, 0));
    }
    const auto commits = [&] { return device.memory->calls(FakeMemory::Call::commit); };
    CHECK_EQ(commits(), 4u);
    if (stranded) {
      for (void* const front : std::exchange(fronts, {})) allocator.deallocate(front);
    }
    blocks.push_back(allocator.allocate(2 * kHandle, 0));
    CHECK_EQ(commits() - 4, stranded ? 16u : 2u);
    for (const auto* list : {&blocks, &fronts}) {
      for (void* const block : *list) allocator.deallocate(block);
    }
    device.check_empty();
  }
}

TEST(a_refusal_while_handles_are_small_loses_nothing) {
  for (std::uint64_t nth = 1; nth < 8; ++nth) {
    const FakeDevice device({}, {.personality = FakeMemory::Personality::device, .accessible = false});
    CachingAllocator& allocator = *device.allocator;
    std::vector<void*> fronts;
    std::vector<void*> blocks;
    for (int i = 0; i < 160; ++i) blocks.push_back(allocator.allocate(128 * kMiB, 0));
    for (void* const block : std::exchange(blocks, {})) allocator.deallocate(block);
    for (int i = 0; i < 160; ++i) {
      fronts.push_back(allocator.allocate(126 * kMiB, 0));
      blocks.push_back(allocator.allocate(2 * kMiB, 0));
    }
    for (void* const front : fronts) allocator.deallocate(front);
    device.memory->fail_call(nth);
    try {
      blocks.push_back(allocator.allocate(3 * kMiB, 7));
    } catch (const OutOfMemory&) {  // or it was had in another way
    }
    device.memory->fail_call(0);
    CHECK_EQ(allocator.check_invariants(), "");
    for (void* const block : blocks) allocator.deallocate(block);
    device.check_empty();
  }
}

TEST(sleep_waits_for_all_streams) {
  const FakeDevice device = device_with_streams();
  CachingAllocator& allocator = *device.allocator;
  Account* const pool = allocator.pools().open("weights", nullptr, true, kNoLimit, kNoLimit);
  fixtures::set_current_pool(allocator, pool);
  std::vector<char*> blocks;
  for (const StreamId stream : {0u, 1u, 2u}) {
    blocks.push_back(static_cast<char*>(allocator.allocate(4 * kMiB, stream)));
    std::memset(blocks.back(), static_cast<int>(stream) + 1, 4 * kMiB);
    device.memory->work(stream);
  }
  allocator.add_use(blocks[0], 1);
  allocator.deallocate(blocks[0]);
  allocator.sleep_pool(*pool, true);
  CHECK_EQ(allocator.ledger().held(), 0u);
  CHECK_EQ(waiting(device), 0);
  CHECK_THROWS(PoolAsleepError, allocator.allocate(100, 5));
  allocator.wake_pool(*pool);
  for (const int stream : {1, 2}) CHECK_EQ(blocks[static_cast<std::size_t>(stream)][kMiB], stream + 1);
  for (const int stream : {1, 2}) allocator.deallocate(blocks[static_cast<std::size_t>(stream)]);
  fixtures::set_current_pool(allocator, nullptr);
  allocator.pools().drop(*pool);
  device.check_empty();
}

// Every backend call in turn fails once, in a walk that moves memory between streams.
TEST(every_call_may_fail_while_streams_are_in_play) {
  const auto walk = [](std::uint64_t failing) {
    const FakeDevice device = device_with_streams(20 * kMiB);
    CachingAllocator& allocator = *device.allocator;
    std::mt19937 random(3);
    std::vector<void*> live;
    device.memory->fail_call(failing);
    for (int step = 0; step < 60; ++step) {
      const StreamId stream = random() % 3;
      device.memory->work(stream);
      if (step % 7 == 0) device.memory->finish(random() % 3, 3);
      if (live.size() < 4 || random() % 2 == 0) {
        try {
          live.push_back(allocator.allocate(1 + random() % (3 * kMiB), stream));
          std::memset(live.back(), 1, 1);
        } catch (const OutOfMemory&) {
        }
      } else {
        std::swap(live[random() % live.size()], live.back());
        if (random() % 2 == 0) allocator.add_use(live.back(), random() % 3);
        allocator.deallocate(live.back());
        live.pop_back();
      }
    }
    device.memory->fail_call(0);
    CHECK_EQ(allocator.arenas().check_invariants(), "");
    for (void* block : live) allocator.deallocate(block);
    for (const StreamId stream : {0u, 1u, 2u}) device.memory->finish(stream);
    allocator.trim(0);
    device.check_empty();
    return device.memory->fallible_calls();
  };
  const std::uint64_t calls = walk(0);
  CHECK(calls > 50);
  for (std::uint64_t failing = 1; failing <= calls; ++failing) walk(failing);
}
