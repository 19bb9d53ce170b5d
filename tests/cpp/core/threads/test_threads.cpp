// Thread caches: what they keep, who recalls it, and what stays of a thread that ends.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>

#include "backend/cpu_device.h"
#include "core/current_pool.h"
#include "core/fixtures.h"
#include "core/in_threads.h"
#include "core/pages/size_classes.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::in_threads;
using fixtures::kMiB;

namespace {

// Whether a child that was forked while other threads ran can start a thread, as Linux has it. qemu-user ends it.
bool a_child_of_threads_starts_one() {
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) std::this_thread::yield();
  });
  const pid_t child = fork();
  if (child == 0) {
    close(STDERR_FILENO);
    std::thread([] {}).join();
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  stop = true;
  other.join();
  return status == 0;
}

}  // namespace

TEST(a_pool_limit_is_exact_with_sixteen_threads_racing_at_it) {
  const FakeDevice device;
  constexpr std::size_t kLimit = kMiB + 64 * 3;  // not a multiple of anything but a block
  Account* const parent = device.allocator->pools().open("parent", nullptr, false, kLimit, kNoLimit);
  std::vector<Account*> pools;
  for (int i = 0; i < 16; ++i) {
    pools.push_back(device.allocator->pools().open("child", parent, false, kNoLimit, kNoLimit));
  }
  std::vector<std::vector<void*>> blocks(16);
  in_threads(16, [&](int i) {
    fixtures::set_current_pool(*device.allocator, pools[static_cast<std::size_t>(i)]);
    try {
      while (true) blocks[static_cast<std::size_t>(i)].push_back(device.allocator->allocate(64));
    } catch (const OutOfMemory& error) {
      CHECK_EQ(error.info().allocated, kLimit);
    }
  });
  std::size_t count = 0;
  for (const auto& mine : blocks) count += mine.size();
  CHECK_EQ(count * 64, kLimit);
  const Account account = device.allocator->accounts().read(*parent);
  CHECK_EQ(static_cast<std::size_t>(account.blocks.bytes.current), kLimit);
  CHECK_EQ(static_cast<std::size_t>(account.blocks.bytes.peak), kLimit);
  in_threads(16, [&](int i) {
    for (void* block : blocks[static_cast<std::size_t>((i + 1) % 16)]) device.allocator->deallocate(block);
  });
  for (Account* pool : pools) device.allocator->pools().drop(*pool);
  device.allocator->pools().drop(*parent);
  device.check_empty();
}

TEST(the_device_limit_is_used_up_to_the_last_byte_by_sixteen_threads) {
  const FakeDevice device({.limit = 64 * kMiB});
  std::atomic<int> got{0};
  std::vector<std::vector<void*>> blocks(16);
  in_threads(16, [&](int i) {
    try {
      while (true) {
        // Something that waits in this thread's cache must not stand in the way of the others.
        device.allocator->deallocate(device.allocator->allocate(kMiB));
        blocks[static_cast<std::size_t>(i)].push_back(device.allocator->allocate(kMiB));
        ++got;
      }
    } catch (const OutOfMemory&) {
    }
  });
  try {
    while (true) {
      blocks[0].push_back(device.allocator->allocate(kMiB));
      ++got;
    }
  } catch (const OutOfMemory&) {
  }
  CHECK_EQ(got.load(), 64);
  CHECK_EQ(device.allocator->ledger().held(), 64 * kMiB);
  for (const auto& mine : blocks) {
    for (void* block : mine) device.allocator->deallocate(block);
  }
  device.check_empty();
}

TEST(a_thread_that_ends_gives_its_cache_back) {
  const FakeDevice device;
  for (int round = 0; round < 20; ++round) {
    in_threads(4, [&](int) {
      std::vector<void*> blocks;
      for (int i = 0; i < 200; ++i) blocks.push_back(device.allocator->allocate(10000));
      for (void* block : blocks) device.allocator->deallocate(block);
    });
  }
  CHECK_EQ(device.allocated(), 0);
  // No trim of caches: what the threads kept is in the arena already, so all of it can go.
  DeviceStats stats = device.allocator->stats();
  CHECK_EQ(stats.free_ranges.bytes.all.current, stats.reserved_bytes.all.current);
  device.check_empty();
}

TEST(mixed_work_of_many_threads_loses_nothing) {
  const FakeDevice device({.thread_cache_bytes = std::size_t{1} << 20, .segment_bytes = 64 * kMiB});
  constexpr int kThreads = 8;
  constexpr int kShared = 64;
  std::vector<std::atomic<void*>> shared(kShared);
  Account* const pool = device.allocator->pools().open("pool", nullptr, false, 32 * kMiB, kNoLimit);
  Account* const isolated = device.allocator->pools().open("isolated", nullptr, true, kNoLimit, kNoLimit);
  in_threads(kThreads, [&](int i) {
    std::mt19937 random(static_cast<unsigned>(i));
    for (int step = 0; step < 4000; ++step) {
      const unsigned roll = random() % 100;
      fixtures::set_current_pool(*device.allocator, roll < 20 ? pool : roll < 30 ? isolated : nullptr);
      void* fresh = nullptr;
      try {
        const std::size_t low = std::size_t{1} << (random() % 21);
        fresh = device.allocator->allocate(low + random() % low);
        *static_cast<volatile char*>(fresh) = 1;
      } catch (const OutOfMemory&) {
      }
      // What one thread made another frees.
      device.allocator->deallocate(shared[random() % kShared].exchange(fresh));
      if (step % 500 == 0) device.allocator->trim(0);
      if (step % 300 == 0) CHECK(device.allocator->stats().blocks.all.bytes.current >= 0);
    }
    fixtures::set_current_pool(*device.allocator, nullptr);
  });
  for (auto& block : shared) device.allocator->deallocate(block.exchange(nullptr));
  device.allocator->pools().drop(*pool);
  device.allocator->pools().drop(*isolated);
  device.check_empty();
}

TEST(a_stay_ends_at_once_whoever_leaves_it) {
  const FakeDevice device;
  CachingAllocator& allocator = *device.allocator;
  Account* const outer = allocator.pools().open("outer", nullptr, false, kNoLimit, kNoLimit);
  Account* const inner = allocator.pools().open("inner", nullptr, false, kNoLimit, kNoLimit);
  PoolEntry entries[3];
  std::atomic<int> turn{0};
  const auto await = [&turn](int wanted) {
    while (turn.load() != wanted) std::this_thread::yield();
  };
  const auto charged = [&](Account* pool) { return allocator.accounts().read(*pool).blocks.bytes.current; };
  std::thread other([&] {
    allocator.pools().enter(entries[0], outer);
    allocator.pools().enter(entries[1], inner);
    allocator.pools().enter(entries[2], inner);
    turn = 1;
    await(2);
    void* const to_inner = allocator.allocate(100);  // the one in the middle is gone, the innermost is not
    turn = 3;
    await(4);
    void* const to_outer = allocator.allocate(100);
    turn = 5;
    await(6);
    void* const to_root = allocator.allocate(100);
    for (void* block : {to_inner, to_outer, to_root}) allocator.deallocate(block);
    allocator.pools().enter(entries[1], inner);  // its thread ends in it
  });
  await(1);
  CHECK(allocator.pools().leave(entries[1]));
  CHECK(!allocator.pools().leave(entries[1]));
  turn = 2;
  await(3);
  CHECK_EQ(charged(inner), 128);
  CHECK(allocator.pools().leave(entries[2]));
  turn = 4;
  await(5);
  CHECK_EQ(charged(outer), 128);
  CHECK(allocator.pools().leave(entries[0]));
  allocator.pools().close(*outer);  // would refuse the next block
  turn = 6;
  other.join();
  CHECK(!allocator.pools().leave(entries[1]));
  CHECK_EQ(charged(inner), 0);
  allocator.pools().drop(*outer);
  allocator.pools().drop(*inner);
  CHECK(allocator.accounts().list().empty());
  device.check_empty();
}

TEST(pools_end_under_threads_that_allocate_in_them) {
  const FakeDevice device;
  CachingAllocator& allocator = *device.allocator;
  constexpr int kThreads = 3;
  PoolEntry entries[kThreads];
  std::atomic<bool> is_over{false};
  std::thread leaver([&] {
    std::minstd_rand random(7);
    while (!is_over.load()) {
      allocator.pools().leave(entries[random() % kThreads]);
    }
  });
  in_threads(kThreads, [&](int i) {
    PoolEntry& entry = entries[i];
    for (int round = 0; round < 400; ++round) {
      Account* const pool = allocator.pools().open("request", nullptr, round % 5 == 0, std::size_t{64} << 10, kNoLimit);
      allocator.pools().enter(entry, pool);
      allocator.pools().drop(*pool);  // the stay alone keeps it
      for (int block = 0; block < 8; ++block) {
        try {
          allocator.deallocate(allocator.allocate(500));
        } catch (const PoolClosedError&) {  // as long as no thread has left it
        }
      }
      allocator.pools().leave(entry);
    }
  });
  is_over = true;
  leaver.join();
  CHECK(allocator.accounts().list().empty());
  device.check_empty();
}

TEST(pools_come_and_go_while_others_allocate) {
  const FakeDevice device;
  in_threads(4, [&](int i) {
    for (int round = 0; round < 300; ++round) {
      Account* const pool =
          device.allocator->pools().open("request", nullptr, (i + round) % 4 == 0, kNoLimit, kNoLimit);
      fixtures::set_current_pool(*device.allocator, pool);
      void* const small = device.allocator->allocate(500);
      void* const large = device.allocator->allocate(2 * kMiB);
      fixtures::set_current_pool(*device.allocator, nullptr);
      device.allocator->deallocate(small);
      device.allocator->pools().drop(*pool);
      device.allocator->deallocate(large);  // the last block takes the pool with it
    }
  });
  device.check_empty();
}

#if !defined(__SANITIZE_THREAD__)  // fork with live threads is outside of what TSan follows
TEST(a_forked_child_has_a_private_copy_and_whole_locks) {
  if (!a_child_of_threads_starts_one()) SKIP("a forked child of a process with threads can start none here");
  CachingAllocator& allocator = cpu_device({});
  auto* const data = static_cast<char*>(allocator.allocate(3 * kMiB));
  data[0] = 1;
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      while (!stop) {
        for (const std::size_t bytes : {100u, 50000u, 2000000u}) allocator.deallocate(allocator.allocate(bytes));
        allocator.stats();
      }
    });
  }
  // An allocator that takes no part in the fork is caught in whatever it does, as a replay would be.
  threads.emplace_back([&] {
    FakeDevice other;
    while (!stop) {
      for (const std::size_t bytes : {100u, 50000u, 2000000u}) {
        other.allocator->deallocate(other.allocator->allocate(bytes));
      }
    }
  });
  for (int round = 0; round < 60; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      data[0] = 2;
      std::vector<void*> blocks;
      for (int i = 0; i < 100; ++i) blocks.push_back(allocator.allocate(static_cast<std::size_t>(i) * 20000 + 1));
      for (void* block : blocks) allocator.deallocate(block);
      allocator.trim(0);
      _exit(allocator.arenas().check_invariants().empty() ? 0 : 1);
    }
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK_EQ(data[0], 1);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  allocator.deallocate(data);
  CHECK_EQ(allocator.check_invariants(), "");
  CHECK_EQ(allocator.stats().blocks.all.bytes.current, 0);
}
#endif

// What another thread has collected and not yet given back is no reason to refuse a block.
TEST(memory_that_the_decay_thread_is_giving_back_can_be_had) {
  const FakeDevice device({}, {.personality = FakeMemory::Personality::device,
                               .capacity_bytes = 80 * kMiB,
                               .accessible = false,
                               .has_streams = true});
  CachingAllocator& allocator = *device.allocator;
  std::jthread decaying([&allocator](const std::stop_token& stop) {
    for (std::int64_t now_ms = 0; !stop.stop_requested(); ++now_ms) allocator.decay(now_ms);
  });
  for (int turn = 0; turn < 300; ++turn) {
    std::vector<void*> blocks;
    for (int i = 0; i < 32; ++i) {
      blocks.push_back(allocator.allocate(2 * kMiB, 0));
      allocator.add_use(blocks.back(), 1);
    }
    device.memory->work(1);
    for (void* const block : blocks) allocator.deallocate(block);
    allocator.deallocate(allocator.allocate(60 * kMiB, 0));
  }
  decaying.request_stop();
  decaying.join();
  device.check_empty();
}

// Snapshots read fields that add_use() and the free of a block with uses write.
TEST(snapshots_while_blocks_are_used_on_other_streams) {
  const FakeDevice device({},
                          {.personality = FakeMemory::Personality::device, .accessible = false, .has_streams = true});
  CachingAllocator& allocator = *device.allocator;
  constexpr int kWorkers = 3;
  std::atomic<int> working{kWorkers};
  in_threads(kWorkers + 1, [&](int i) {
    if (i == kWorkers) {
      while (working.load() > 0) {
        for (const SnapshotBlock& block : allocator.snapshot().blocks) CHECK_EQ(block.account, 0u);
        allocator.stats();
      }
      return;
    }
    const auto stream = static_cast<StreamId>(i);
    for (int turn = 0; turn < 400; ++turn) {
      for (const std::size_t bytes : {std::size_t{100}, 100 * std::size_t{1024}, 2 * kMiB}) {
        void* const block = allocator.allocate(bytes, stream);
        allocator.add_use(block, stream + 10);
        device.memory->work(stream + 10);
        allocator.deallocate(block);
      }
      device.memory->finish(stream + 10, 2);
    }
    --working;
  });
  for (StreamId stream = 10; stream < 10 + kWorkers; ++stream) device.memory->finish(stream);
  device.check_empty();
}
