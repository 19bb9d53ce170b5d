// What threads keep in their caches, and what of it the others get back.
#include <atomic>
#include <barrier>
#include <thread>
#include <vector>

#include "core/fixtures.h"
#include "core/in_threads.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::in_threads;
using fixtures::kMiB;

namespace {

constexpr std::size_t kKiB = 1024;

std::vector<void*> allocate_many(CachingAllocator& allocator, int count, std::size_t bytes) {
  std::vector<void*> blocks;
  for (int i = 0; i < count; ++i) blocks.push_back(allocator.allocate(bytes));
  return blocks;
}

void free_all(CachingAllocator& allocator, const std::vector<void*>& blocks) {
  for (void* block : blocks) CHECK(allocator.deallocate(block));
}

// A thread that has freed blocks, which wait in its cache, and lives on.
class IdleThread {
 public:
  IdleThread(CachingAllocator& allocator, int count, std::size_t bytes)
      : thread_([this, &allocator, count, bytes] {
          free_all(allocator, allocate_many(allocator, count, bytes));
          is_idle_ = true;
          is_idle_.notify_all();
          is_over_.wait(false);
        }) {
    is_idle_.wait(false);
  }
  IdleThread(const IdleThread&) = delete;
  IdleThread& operator=(const IdleThread&) = delete;
  ~IdleThread() {
    is_over_ = true;
    is_over_.notify_all();
    thread_.join();
  }

 private:
  std::atomic<bool> is_idle_{false};
  std::atomic<bool> is_over_{false};
  std::thread thread_;
};

}  // namespace

TEST(threads_with_many_blocks_do_not_meet_at_the_arenas_lock) {
  constexpr int kThreads = 4;
  for (const std::size_t bytes : {std::size_t{64}, 4 * kKiB, 32 * kKiB, 256 * kKiB, kMiB}) {
    const FakeDevice device;
    CachingAllocator& allocator = *device.allocator;
    std::barrier together(kThreads);
    CountedMutex::Counts before;
    CountedMutex::Counts after;
    in_threads(kThreads, [&](int i) {
      const auto round = [&] {
        const std::vector<void*> blocks = allocate_many(allocator, 256, bytes);
        together.arrive_and_wait();  // so that all memory is there after the first round
        free_all(allocator, blocks);
        together.arrive_and_wait();
      };
      for (int warm_up = 0; warm_up < 4; ++warm_up) round();
      if (i == 0) before = allocator.arenas().lock_counts();
      for (int rounds = 0; rounds < 20; ++rounds) round();
      if (i == 0) after = allocator.arenas().lock_counts();
      together.arrive_and_wait();  // before a thread ends, and gives its cache back
    });
    CHECK_EQ(after.taken, before.taken);
    CHECK_EQ(after.waits, before.waits);
    CHECK_EQ(allocator.ledger().read_stats().blocks.all.count.peak, kThreads * 256);
    device.check_empty();
  }
}

TEST(small_blocks_in_the_cache_of_another_thread_serve_before_more_is_held) {
  const FakeDevice device;
  CachingAllocator& allocator = *device.allocator;
  {
    const IdleThread other(allocator, 256, 32 * kKiB);
    const std::size_t held = allocator.ledger().held();
    CHECK(held >= 8 * kMiB);
    void* const block = allocator.allocate(8 * kMiB);
    CHECK_EQ(allocator.ledger().held(), held);
    allocator.deallocate(block);
  }
  device.check_empty();
}

TEST(small_blocks_that_wait_in_an_idle_threads_cache_go_back) {
  const FakeDevice device({.decay_ms = 1000});
  CachingAllocator& allocator = *device.allocator;
  {
    const IdleThread other(allocator, 256, 32 * kKiB);
    CHECK(allocator.ledger().held() >= 8 * kMiB);
    for (std::int64_t now_ms = 0; now_ms <= 2500; now_ms += allocator.decay_tick_ms()) allocator.decay(now_ms);
    CHECK_EQ(allocator.ledger().held(), 0u);
  }
  device.check_empty();
}

TEST(where_handles_stay_whole_a_thread_keeps_few_small_blocks) {
  const FakeDevice device({}, {.personality = FakeMemory::Personality::device});
  CachingAllocator& allocator = *device.allocator;
  free_all(allocator, allocate_many(allocator, 512, 32 * kKiB));
  // At most 64 of them wait, so that most of the memory is free for other sizes.
  CHECK(allocator.stats().free_ranges.bytes.all.current >= static_cast<std::int64_t>((512 - 64 - 4) * 32 * kKiB));
  device.check_empty();
}

TEST(a_thread_may_be_given_no_cache) {
  const FakeDevice device({.thread_cache_bytes = 0});
  CachingAllocator& allocator = *device.allocator;
  free_all(allocator, allocate_many(allocator, 200, kKiB));
  CHECK_EQ(allocator.stats().free_ranges.bytes.all.current, static_cast<std::int64_t>(allocator.ledger().held()));
  device.check_empty();
}

// The smallest medium size is the first one that the thread's cache is asked for.
TEST(a_first_medium_block_takes_no_others_along) {
  for (const std::size_t bytes : {33 * kKiB, 36 * kKiB, 40 * kKiB, kMiB}) {
    const FakeDevice device;
    CachingAllocator& allocator = *device.allocator;
    CHECK(allocator.deallocate(allocator.allocate(64 * kMiB)));
    allocator.trim(0);
    void* const large = allocator.allocate(64 * kMiB);
    CHECK(allocator.deallocate(large));
    in_threads(1, [&](int) {
      void* const block = allocator.allocate(bytes);
      CHECK(allocator.stats().free_ranges.bytes.all.current > static_cast<std::int64_t>(62 * kMiB));
      CHECK(allocator.deallocate(block));
    });
    device.check_empty();
  }
}

TEST(small_blocks_that_are_used_all_the_time_do_not_decay) {
  const FakeDevice device({.decay_ms = 1000});
  CachingAllocator& allocator = *device.allocator;
  const auto round = [&] {
    const std::vector<void*> four = allocate_many(allocator, 400, 4 * kKiB);
    const std::vector<void*> eight = allocate_many(allocator, 400, 8 * kKiB);
    free_all(allocator, four);
    free_all(allocator, eight);
  };
  round();
  std::int64_t now_ms = 0;
  for (; now_ms < 2000; now_ms += allocator.decay_tick_ms()) {
    round();
    allocator.decay(now_ms);
  }
  const std::int64_t commits = allocator.stats().commits;
  for (; now_ms < 20000; now_ms += allocator.decay_tick_ms()) {
    round();
    allocator.decay(now_ms);
  }
  CHECK_EQ(allocator.stats().commits, commits);
  CHECK_EQ(allocator.stats().decayed_bytes, 0);
  for (; now_ms < 24000; now_ms += allocator.decay_tick_ms()) allocator.decay(now_ms);  // and none uses them
  CHECK_EQ(allocator.ledger().held(), 0u);
  device.check_empty();
}

// One block of each slab waits in a thread's cache, and keeps it.
TEST(slabs_that_few_cached_blocks_keep_go_back_too) {
  for (const bool decays : {false, true}) {
    const FakeDevice device({.decay_ms = 1000});
    CachingAllocator& allocator = *device.allocator;
    const std::vector<void*> blocks = allocate_many(allocator, 512 * 64, kKiB);  // 64 of each slab
    in_threads(1, [&](int) {
      std::vector<void*> one_of_each;
      for (std::size_t i = 0; i < blocks.size(); ++i) {
        if (i % 64 == 0) one_of_each.push_back(blocks[i]);
      }
      in_threads(1, [&](int) {
        for (std::size_t i = 0; i < blocks.size(); ++i) {
          if (i % 64 != 0) CHECK(allocator.deallocate(blocks[i]));
        }
      });
      free_all(allocator, one_of_each);
      const std::size_t held = allocator.ledger().held();
      CHECK(held >= 32 * kMiB);
      in_threads(1, [&](int) {  // while the first one, and its cache, are there
        if (decays) {
          for (std::int64_t now_ms = 0; now_ms <= 3000; now_ms += allocator.decay_tick_ms()) allocator.decay(now_ms);
          CHECK_EQ(allocator.ledger().held(), 0u);
        } else {
          CHECK(allocator.deallocate(allocator.allocate(30 * kMiB)));
          CHECK_EQ(allocator.ledger().held(), held);
        }
      });
    });
    device.check_empty();
  }
}

TEST(a_full_cache_of_small_blocks_makes_way_for_another_size) {
  const FakeDevice device;
  CachingAllocator& allocator = *device.allocator;
  free_all(allocator, allocate_many(allocator, 2000, 4 * kKiB));
  free_all(allocator, allocate_many(allocator, 512, 32 * kKiB));  // all that a cache may keep
  const CountedMutex::Counts before = allocator.arenas().lock_counts();
  const std::vector<void*> blocks = allocate_many(allocator, 2000, 4 * kKiB);
  CHECK(allocator.arenas().lock_counts().taken - before.taken < 1000);
  free_all(allocator, blocks);
  device.check_empty();
}
