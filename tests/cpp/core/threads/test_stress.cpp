// Threads that do everything at once. MEMPOOL_STRESS_OPERATIONS in the environment sets how much: 20,000 unless told.
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>

#include "core/current_pool.h"
#include "core/fixtures.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::kMiB;

namespace {

std::size_t operations() {
  const char* const text = std::getenv("MEMPOOL_STRESS_OPERATIONS");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 20000;
}

struct Block {
  unsigned char* address = nullptr;
  std::size_t bytes = 0;
  unsigned char fill = 0;
};

// Blocks that one thread made and any may free.
class Exchange {
 public:
  Block swap(std::size_t slot, const Block& block) {
    const std::lock_guard guard(mutex_);
    return std::exchange(slots_[slot % slots_.size()], block);
  }

 private:
  std::mutex mutex_;
  std::array<Block, 64> slots_{};
};

class Worker {
 public:
  Worker(CachingAllocator& allocator, Exchange& exchange, Account* pool, unsigned seed)
      : allocator_(allocator), exchange_(exchange), pool_(pool), random_(seed) {}

  void run(std::size_t steps) {
    for (std::size_t i = 0; i < steps; ++i) {
      Block& own = blocks_[random_() % blocks_.size()];
      free(own);
      own = random_() % 8 == 0 ? exchange_.swap(random_(), allocate()) : allocate();
    }
    for (Block& block : blocks_) free(block);
  }

 private:
  Block allocate() {
    const unsigned order = random_() % 100 < 90 ? random_() % 15 : 15 + random_() % 8;
    const std::size_t bytes = (std::size_t{1} << order) + random_() % (std::size_t{1} << order);
    fixtures::set_current_pool(allocator_, random_() % 4 == 0 ? pool_ : nullptr);
    Block block;
    try {
      block = {static_cast<unsigned char*>(allocator_.allocate(bytes)), bytes, static_cast<unsigned char>(random_())};
    } catch (const OutOfMemory&) {
    }
    fixtures::set_current_pool(allocator_, nullptr);
    if (block.address != nullptr) block.address[0] = block.address[block.bytes - 1] = block.fill;
    return block;
  }
  void free(Block& block) {
    if (block.address == nullptr) return;
    CHECK_EQ(block.address[0], block.fill);
    CHECK_EQ(block.address[block.bytes - 1], block.fill);
    CHECK(allocator_.deallocate(block.address));
    block = {};
  }

  CachingAllocator& allocator_;
  Exchange& exchange_;
  Account* const pool_;
  std::mt19937 random_;
  std::array<Block, 24> blocks_{};
};

// What others do meanwhile: read, give back, move, put to sleep.
void disturb(CachingAllocator& allocator, Account* sleeper, const std::atomic<bool>& done) {
  std::mt19937 random(77);
  std::int64_t now_ms = 0;
  while (!done.load()) {
    switch (random() % 6) {
      case 0:
        allocator.stats();
        break;
      case 1:
        allocator.decay(now_ms += 5000);
        break;
      case 2:
        allocator.defragment();
        break;
      case 3:
        allocator.trim(random() % (64 * kMiB));
        break;
      case 4:
        CHECK_EQ(allocator.arenas().check_invariants(), "");
        break;
      default:
        try {
          allocator.sleep_pool(*sleeper, true);
          allocator.wake_pool(*sleeper);
        } catch (const OutOfMemory&) {
        }
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (allocator.pool_asleep(*sleeper)) allocator.wake_pool(*sleeper);
}

}  // namespace

TEST(eight_threads_do_everything_at_once) {
  constexpr std::size_t kThreads = 8;
  const FakeDevice device({.limit = 512 * kMiB});
  CachingAllocator& allocator = *device.allocator;
  Account* const shared = allocator.pools().open("shared", nullptr, false, 64 * kMiB, kNoLimit);
  Account* const isolated = allocator.pools().open("isolated", nullptr, true, 64 * kMiB, kNoLimit);
  Account* const sleeper = allocator.pools().open("sleeper", nullptr, true, kNoLimit, kNoLimit);
  fixtures::set_current_pool(allocator, sleeper);
  auto* const kept = static_cast<unsigned char*>(allocator.allocate(5 * kMiB));
  fixtures::set_current_pool(allocator, nullptr);
  std::memset(kept, 42, 5 * kMiB);
  Exchange exchange;
  std::atomic<bool> done{false};
  std::thread disturber([&] { disturb(allocator, sleeper, done); });
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      Worker(allocator, exchange, i % 2 == 0 ? shared : isolated, static_cast<unsigned>(i))
          .run(operations() / kThreads);
    });
  }
  for (std::thread& thread : threads) thread.join();
  done.store(true);
  disturber.join();
  for (std::size_t i = 0; i < 64; ++i) {
    if (const Block left = exchange.swap(i, {}); left.address != nullptr) allocator.deallocate(left.address);
  }
  CHECK_EQ(kept[0], 42);
  CHECK_EQ(kept[5 * kMiB - 1], 42);
  allocator.deallocate(kept);
  for (Account* pool : {shared, isolated, sleeper}) allocator.pools().drop(*pool);
  device.check_empty();
}
