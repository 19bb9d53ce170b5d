// Random walks against a naive model that knows nothing of the allocator's insides: no two live blocks overlap, every
// byte of every live block keeps what was written, counters equal the sums, limits hold.
#include <algorithm>
#include <map>
#include <random>

#include "core/current_pool.h"
#include "core/size_classes.h"
#include "fixtures.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::kMiB;

namespace {

class Model {
 public:
  void add(void* address, std::size_t bytes, std::size_t pool) {
    const auto start = reinterpret_cast<std::uintptr_t>(address);
    const auto next = live_.lower_bound(start);
    CHECK(next == live_.end() || start + round_block(bytes) <= next->first);
    if (next != live_.begin()) {
      const auto& before = *std::prev(next);
      CHECK(before.first + round_block(before.second.bytes) <= start);
    }
    const auto fill = static_cast<unsigned char>(++stamp_);
    std::memset(address, fill, bytes);
    live_[start] = {bytes, fill, pool};
    sums_[pool] += round_block(bytes);
  }
  void* remove(std::size_t which) {
    const auto it = std::next(live_.begin(), static_cast<std::ptrdiff_t>(which));
    check_contents(it->first, it->second);
    sums_[it->second.pool] -= round_block(it->second.bytes);
    void* const address = reinterpret_cast<void*>(it->first);
    live_.erase(it);
    return address;
  }
  void check_all() const {
    for (const auto& [start, block] : live_) check_contents(start, block);
  }
  std::size_t count() const { return live_.size(); }
  std::size_t sum(std::size_t pool) const {
    const auto it = sums_.find(pool);
    return it == sums_.end() ? 0 : it->second;
  }
  std::size_t total() const {
    std::size_t out = 0;
    for (const auto& [pool, bytes] : sums_) out += bytes;
    return out;
  }

 private:
  struct Block {
    std::size_t bytes;
    unsigned char fill;
    std::size_t pool;
  };
  static void check_contents(std::uintptr_t start, const Block& block) {
    const auto* const data = reinterpret_cast<const unsigned char*>(start);
    CHECK(std::all_of(data, data + block.bytes, [&](unsigned char byte) { return byte == block.fill; }));
  }

  std::map<std::uintptr_t, Block> live_;
  std::map<std::size_t, std::size_t> sums_;
  unsigned stamp_ = 0;
};

std::size_t random_size(std::mt19937& random) {
  const std::size_t low = std::size_t{1} << (random() % 23);
  return low + random() % low;
}

void check_against(CachingAllocator& allocator, const Model& model, const std::vector<Account*>& pools) {
  CHECK_EQ(allocator.check_invariants(), "");
  const DeviceStats stats = allocator.stats();
  CHECK_EQ(static_cast<std::size_t>(stats.blocks.all.bytes.current), model.total());
  CHECK_EQ(static_cast<std::size_t>(stats.blocks.all.count.current), model.count());
  CHECK_EQ(stats.blocks.all.bytes.current, stats.blocks.all.bytes.allocated - stats.blocks.all.bytes.freed);
  CHECK_EQ(static_cast<std::size_t>(stats.reserved_bytes.all.current), allocator.ledger().held());
  CHECK(allocator.ledger().held() <= allocator.ledger().limit());
  for (std::size_t i = 1; i < pools.size(); ++i) {
    const Account account = allocator.ledger().read(*pools[i]);
    // The second pool is the parent of the third.
    const std::size_t expected = model.sum(i) + (i == 1 ? model.sum(2) : 0);
    CHECK_EQ(static_cast<std::size_t>(account.blocks.bytes.current), expected);
    CHECK(static_cast<std::size_t>(account.blocks.bytes.peak) <= account.limit);
  }
}

// What may happen between two allocations without anybody noticing.
void shake(CachingAllocator& allocator, Account& isolated, std::mt19937& random, std::int64_t& now_ms) {
  switch (random() % 4) {
    case 0:
      allocator.defragment();
      return;
    case 1:
      allocator.decay(now_ms += static_cast<std::int64_t>(random() % 20000));
      return;
    default: {
      try {
        allocator.sleep_pool(isolated, true);
      } catch (const PoolStateError&) {
        return;
      }
      if (random() % 2 == 0) allocator.trim(0);
      allocator.wake_pool(isolated);
    }
  }
}

void walk(CachingAllocator& allocator, unsigned seed, int steps) {
  std::mt19937 random(seed);
  Model model;
  Account* const parent = allocator.open_pool("parent", nullptr, false, 24 * kMiB, kNoLimit);
  Account* const child = allocator.open_pool("child", parent, false, 9 * kMiB, kNoLimit);
  Account* const isolated = allocator.open_pool("isolated", nullptr, true, kNoLimit, kNoLimit);
  const std::vector<Account*> pools{nullptr, parent, child, isolated};
  std::int64_t now_ms = 0;
  for (int step = 0; step < steps; ++step) {
    const unsigned roll = random() % 100;
    if (roll < 54 || model.count() == 0) {
      const std::size_t pool = random() % pools.size();
      fixtures::set_current_pool(allocator, pools[pool]);
      const std::size_t bytes = random_size(random);
      try {
        model.add(allocator.allocate(bytes), bytes, pool);
      } catch (const OutOfMemory& error) {
        CHECK(error.info().requested == bytes);
      }
    } else if (roll < 97) {
      CHECK(allocator.deallocate(model.remove(random() % model.count())));
    } else if (roll < 98) {
      allocator.trim(random() % (64 * kMiB));
    } else if (roll < 99) {
      allocator.trim_pool(*isolated);
    } else {
      shake(allocator, *isolated, random, now_ms);
    }
    if (step % 64 == 0) check_against(allocator, model, pools);
  }
  model.check_all();
  fixtures::set_current_pool(allocator, nullptr);
  while (model.count() > 0) allocator.deallocate(model.remove(0));
  check_against(allocator, model, pools);
  for (Account* pool : {child, parent, isolated}) allocator.drop_pool(*pool);
}

}  // namespace

TEST(random_walks_on_the_fake_backend) {
  unsigned seed = 0;
  for (const FakeMemory::Settings& settings : fixtures::personalities()) {
    for (const std::size_t limit : {kNoLimit, 40 * kMiB}) {
      for (const std::size_t cache : {std::size_t{0}, std::size_t{4} << 20}) {
        const FakeDevice device({.limit = limit, .thread_cache_bytes = cache, .segment_bytes = 32 * kMiB}, settings);
        walk(*device.allocator, ++seed, 3000);
        device.check_empty();
      }
    }
  }
}

// Also with what other kernels lack: huge pages, moves of several mappings at once, moves at all.
TEST(random_walks_on_the_host) {
  for (const MoveSupport allowed : {MoveSupport{true, true}, MoveSupport{true, false}, MoveSupport{}}) {
    const bool huge_pages = allowed.across_mappings || !allowed.moves;
    CachingAllocator allocator("host", std::make_unique<HostMemory>(huge_pages, allowed), {.limit = 64 * kMiB});
    walk(allocator, 99, 4000);
    allocator.trim(0);
    CHECK_EQ(allocator.ledger().held(), 0u);
  }
}
