// Whatever reads or changes an allocator as a whole, while threads allocate in it: for ThreadSanitizer above all.
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>

#include "backend/decay_thread.h"
#include "core/allocator/found_block.h"
#include "core/current_pool.h"
#include "core/fixtures.h"
#include "core/in_threads.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::in_threads;
using fixtures::kMiB;

namespace {

constexpr std::array kSizes{std::size_t{100}, 100 * std::size_t{1024}, 2 * kMiB};

FakeDevice addresses_with_streams(const Options& options = {}) {
  return FakeDevice(options,
                    {.personality = FakeMemory::Personality::device, .accessible = false, .has_streams = true});
}

// Calls body(i) in several threads, and meanwhile meddle(round) in one more, until all of them are done.
template <typename Body, typename Meddle>
void meddling(int count, Body body, Meddle meddle) {
  std::atomic<int> working{count};
  in_threads(count + 1, [&](int i) {
    if (i < count) {
      body(i);
      --working;
      return;
    }
    for (int round = 0; working.load() > 0; ++round) meddle(round);
  });
}

void count_pressure(const char*, std::size_t, bool, PressureOutcome& outcome) noexcept { ++outcome.calls; }

std::uint32_t some_stack() noexcept { return 7; }

class Counting final : public BlockListener {
 public:
  void on_alloc(const ObservedBlock&) noexcept override { ++heard; }
  void on_free(const ObservedBlock&, bool) noexcept override { ++heard; }
  void on_completed(const ObservedBlock&) noexcept override { ++heard; }
  std::atomic<long> heard{0};
};

}  // namespace

TEST(figures_are_read_and_reset_while_others_allocate) {
  const FakeDevice device = addresses_with_streams();
  CachingAllocator& allocator = *device.allocator;
  Account* const pool = allocator.pools().open("pool", nullptr, false, kNoLimit, kNoLimit);
  Account* const isolated = allocator.pools().open("isolated", nullptr, true, kNoLimit, kNoLimit);
  ArenaFamily& family = allocator.arenas().open("graphs", ArenaFamily::Kind::isolated);
  meddling(
      3,
      [&](int i) {
        const auto stream = static_cast<StreamId>(i);
        for (int turn = 0; turn < 200; ++turn) {
          fixtures::set_current_pool(allocator, turn % 3 == 0 ? pool : turn % 3 == 1 ? isolated : nullptr);
          for (const std::size_t bytes : kSizes) {
            void* const block = allocator.allocate(bytes, stream);
            void* const captured = allocator.allocate_from(family, bytes, stream);
            CHECK(block_bytes(block) >= bytes);
            CHECK(owner_of(block) == &allocator);
            const BackedRange range = backed_range_of(block);
            CHECK(range.address <= block && range.bytes >= bytes && range.stream == stream);
            CHECK(!fixtures::is_used_elsewhere(block));
            allocator.deallocate(block);
            allocator.deallocate(captured);
          }
        }
        fixtures::set_current_pool(allocator, nullptr);
      },
      [&](int round) {
        for (const SnapshotBlock& block : allocator.snapshot().blocks) CHECK(block.bytes > 0);
        CHECK(allocator.stats().blocks.all.bytes.current >= 0);
        CHECK_EQ(allocator.arenas().check_invariants(), "");
        CHECK_EQ(allocator.accounts().list().size(), 2u);
        CHECK(allocator.accounts().read(*pool).name == "pool");
        for (const CachingAllocator::PlacedBlock& block : allocator.live_blocks(family)) CHECK(block.rounded > 0);
        CHECK(allocator.arenas().held_bytes(family) + allocator.pools().held_bytes(*isolated) <= std::size_t{1} << 40);
        allocator.arenas().largest_free();
        allocator.ledger().moment();
        allocator.accounts().reset_peaks(*pool);
        round % 2 == 0 ? allocator.reset_peaks() : allocator.reset_sums();
      });
  allocator.arenas().close(family);
  allocator.pools().drop(*pool);
  allocator.pools().drop(*isolated);
  device.check_empty();
}

TEST(observers_come_and_go_while_others_allocate) {
  static constexpr Hooks kHooks{.pressure = nullptr, .capture_stack = some_stack};
  mempool::set_hooks(&kHooks);
  std::array<char, 32> path{"/tmp/mempool-races-XXXXXX"};
  close(mkstemp(path.data()));
  Counting counting;
  const FakeDevice device = addresses_with_streams();
  CachingAllocator& allocator = *device.allocator;
  meddling(
      3,
      [&](int i) {
        for (int turn = 0; turn < 400; ++turn) {
          for (const std::size_t bytes : kSizes) {
            void* const block = allocator.allocate(bytes, static_cast<StreamId>(i));
            allocator.add_use(block, 9);
            CHECK(fixtures::is_used_elsewhere(block));
            allocator.deallocate(block);
          }
        }
      },
      [&](int round) {
        allocator.observers().start_history(64);
        const bool is_recording = allocator.observers().start_recording(path.data());
        allocator.observers().mark_recording(static_cast<std::uint64_t>(round));
        allocator.observers().history().view();
        std::this_thread::yield();
        if (round % 2 == 0) allocator.observers().stop_history();
        if (is_recording) CHECK_EQ(allocator.observers().stop_recording().error, 0);
        allocator.observers().listen(round % 3 == 0 ? &counting : nullptr);
      });
  allocator.observers().stop_history();
  allocator.observers().listen(nullptr);
  unlink(path.data());
  mempool::set_hooks(nullptr);
  CHECK(counting.heard.load() > 0);
  device.check_empty();
}

TEST(many_threads_use_share_and_picture_the_same_blocks) {
  const FakeDevice device = addresses_with_streams();
  CachingAllocator& allocator = *device.allocator;
  for (int turn = 0; turn < 20; ++turn) {
    std::vector<void*> blocks;
    for (const std::size_t bytes : kSizes) blocks.push_back(allocator.allocate(bytes, 0));
    meddling(
        3,
        [&](int i) {
          for (void* const block : blocks) {
            CHECK(allocator.add_use(block, static_cast<StreamId>(10 + i)));
            CHECK(!allocator.pin_handles(block).empty());
            allocator.unpin(block);
          }
        },
        [&](int) { CHECK_EQ(allocator.snapshot().pools.size(), 1u); });
    for (void* const block : blocks) {
      CHECK(fixtures::is_used_elsewhere(block));
      allocator.deallocate(block);
    }
  }
  device.check_empty();
}

TEST(pools_sleep_and_wake_under_their_users) {
  const FakeDevice device;
  CachingAllocator& allocator = *device.allocator;
  Account* const pool = allocator.pools().open("model", nullptr, true, 64 * kMiB, kNoLimit);
  fixtures::set_current_pool(allocator, pool);
  auto* const kept = static_cast<unsigned char*>(allocator.allocate(3 * kMiB));
  fixtures::set_current_pool(allocator, nullptr);
  std::memset(kept, 42, 3 * kMiB);
  meddling(
      3,
      [&](int) {
        fixtures::set_current_pool(allocator, pool);
        std::array<void*, 8> blocks{};
        for (std::size_t turn = 0; turn < 400; ++turn) {
          void*& block = blocks[turn % blocks.size()];
          allocator.deallocate(std::exchange(block, nullptr));
          try {
            block = allocator.allocate(kSizes[turn % kSizes.size()]);
          } catch (const PoolAsleepError&) {
          }
        }
        for (void* const block : blocks) allocator.deallocate(block);
        fixtures::set_current_pool(allocator, nullptr);
      },
      [&](int) {
        allocator.sleep_pool(*pool, true);
        CHECK(allocator.pool_asleep(*pool));
        allocator.wake_pool(*pool);
        CHECK(kept[0] == 42 && kept[3 * kMiB - 1] == 42);
      });
  allocator.deallocate(kept);
  allocator.pools().drop(*pool);
  device.check_empty();
}

TEST(limits_change_and_pools_close_while_others_allocate) {
  static constexpr Hooks kHooks{.pressure = count_pressure, .capture_stack = nullptr};
  mempool::set_hooks(&kHooks);
  const FakeDevice device({.limit = 96 * kMiB}, {.accessible = false});
  CachingAllocator& allocator = *device.allocator;
  std::atomic<Account*> current{allocator.pools().open("request", nullptr, false, 8 * kMiB, 2 * kMiB)};
  std::vector<Account*> past;
  meddling(
      3,
      [&](int) {
        std::vector<void*> blocks;
        for (std::size_t turn = 0; turn < 600; ++turn) {
          fixtures::set_current_pool(allocator, turn % 4 == 0 ? nullptr : current.load());
          try {
            blocks.push_back(allocator.allocate(kSizes[turn % kSizes.size()]));
          } catch (const OutOfMemory&) {
          } catch (const PoolClosedError&) {
          }
          if (turn % 8 == 7) {
            for (void* const block : std::exchange(blocks, {})) allocator.deallocate(block);
          }
        }
        for (void* const block : blocks) allocator.deallocate(block);
        fixtures::set_current_pool(allocator, nullptr);
      },
      [&](int round) {
        Account* const pool = current.load();
        try {
          allocator.pools().set_limit(*pool, (round % 2 == 0 ? 4 : 8) * kMiB);
          allocator.set_limit((round % 2 == 0 ? 64 : 96) * kMiB);
        } catch (const ConfigError&) {
        }
        allocator.accounts().set_soft_limit(*pool, kMiB);
        allocator.set_soft_limit(round % 3 == 0 ? 32 * kMiB : kNoLimit);
        if (round % 16 != 15) return;
        current = allocator.pools().open("request", nullptr, round % 32 == 31, 8 * kMiB, 2 * kMiB);
        allocator.pools().close(*pool);
        past.push_back(pool);  // others may be about to enter it
      });
  past.push_back(current);
  for (Account* const pool : past) allocator.pools().drop(*pool);
  CHECK(allocator.accounts().list().empty());
  allocator.set_soft_limit(kNoLimit);
  mempool::set_hooks(nullptr);
  device.check_empty();
}

TEST(the_decay_thread_works_beside_others_and_ends_when_nothing_is_held) {
  static const FakeDevice* const device = new FakeDevice({.decay_ms = 1});  // immortal, as the thread wants it
  CachingAllocator& allocator = *device->allocator;
  allocator.set_growth_hook(ensure_decay_thread);
  in_threads(3, [&](int) {
    for (int turn = 0; turn < 400; ++turn) {
      for (const std::size_t bytes : kSizes) allocator.deallocate(allocator.allocate(bytes));
    }
  });
  while (allocator.ledger().held() > 0) std::this_thread::yield();
  device->check_empty();
}
