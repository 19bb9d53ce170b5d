// Random walks against a naive model that knows nothing of the allocator's insides: no two live blocks overlap, every
// byte of every live block keeps what was written, counters equal the sums, limits hold. Several threads enter and
// leave pools, their own stays and those of others. MEMPOOL_WALK_SEED in the environment sets the first seed: 0 unless
// told.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>

#include "core/fixtures.h"
#include "core/pages/size_classes.h"
#include "core/stays.h"

using namespace mempool;
using fixtures::FakeDevice;
using fixtures::kMiB;
using fixtures::Stays;

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

unsigned first_seed() {
  const char* const text = std::getenv("MEMPOOL_WALK_SEED");
  return text != nullptr ? static_cast<unsigned>(std::strtoul(text, nullptr, 10)) : 0;
}

std::size_t random_size(std::mt19937& random) {
  const std::size_t low = std::size_t{1} << (random() % 23);
  return low + random() % low;
}

class Walk {
 public:
  Walk(CachingAllocator& allocator, unsigned seed) : allocator_(allocator), random_(seed), stays_(allocator) {
    add_pool("parent", kRoot, false, 24 * kMiB);
    add_pool("child", kParent, false, 9 * kMiB);
    add_pool("isolated", kRoot, true, kNoLimit);
    renew();
  }

  void run(int steps) {
    for (int step = 0; step < steps; ++step) {
      const unsigned roll = random_() % 100;
      if (roll < 46 || model_.count() == 0) {
        allocate();
      } else if (roll < 85) {
        free(random_() % model_.count());
      } else if (roll < 97) {
        move_a_stay();
      } else if (roll < 98) {
        allocator_.trim(random_() % (64 * kMiB));
      } else if (roll < 99) {
        allocator_.trim_pool(*pools_[kIsolated].account);
      } else {
        shake();
      }
      if (step % 64 == 0) check();
    }
    model_.check_all();
    for (std::size_t thread = 0; thread < Stays::kThreads; ++thread) stays_.leave_above(thread, 0);
    while (model_.count() > 0) free(0);
    check();
    for (std::size_t pool = pools_.size(); pool-- > 1;) drop(pool);
    CHECK(allocator_.accounts().list().empty());
  }

 private:
  static constexpr std::size_t kRoot = 0;
  static constexpr std::size_t kParent = 1;
  static constexpr std::size_t kIsolated = 3;
  struct Pool {
    Account* account;  // as long as anything keeps it
    std::string name;
    std::size_t parent;
    std::size_t limit;
    bool is_dropped = false;
  };

  // Mostly the caller's: the others cost two changes of threads each time.
  std::size_t any_thread() {
    const std::size_t thread = random_() % 8;
    return thread < Stays::kThreads ? thread : 0;
  }

  void allocate() {
    const std::size_t thread = any_thread();
    const std::size_t pool = stays_.pool_of(thread);
    const std::size_t bytes = random_size(random_);
    void* address = nullptr;
    bool is_closed = false;
    try {
      stays_.on(thread, [&] { address = allocator_.allocate(bytes); });
    } catch (const OutOfMemory& error) {
      CHECK(error.info().requested == bytes);
    } catch (const PoolClosedError&) {
      is_closed = true;
    }
    CHECK_EQ(is_closed, pools_[pool].is_dropped);
    if (address != nullptr) model_.add(address, bytes, pool);
  }

  void free(std::size_t which) {
    void* const address = model_.remove(which);
    stays_.on(any_thread(), [&] { CHECK(allocator_.deallocate(address)); });
  }

  void move_a_stay() {
    const std::size_t thread = any_thread();
    switch (random_() % 16) {
      case 0:
        return stays_.leave_above(thread, random_() % 4);
      case 1:
        return stays_.end_thread(thread);
      case 2:
        drop(pools_.size() - 1);
        return renew();
      default:
        if (stays_.count() > random_() % 12) return stays_.leave(random_(), thread);
        // The first four, or the last.
        const std::size_t choice = random_() % 5;
        const std::size_t pool = choice < 4 ? choice : pools_.size() - 1;
        stays_.enter(thread, pools_[pool].account, pool);
    }
  }

  // A pool for a while, as of a request; stays and blocks outlive its handle.
  void renew() {
    add_pool("request " + std::to_string(pools_.size()), random_() % 2 == 0 ? kRoot : kParent, random_() % 3 == 0,
             8 * kMiB);
  }
  void add_pool(const std::string& name, std::size_t parent, bool isolated, std::size_t limit) {
    pools_.push_back(
        {allocator_.pools().open(name, pools_[parent].account, isolated, limit, kNoLimit), name, parent, limit});
  }
  void drop(std::size_t pool) {
    if (std::exchange(pools_[pool].is_dropped, true)) return;
    allocator_.pools().drop(*pools_[pool].account);
  }

  // What may happen between two allocations without anybody noticing.
  void shake() {
    switch (random_() % 4) {
      case 0:
        allocator_.defragment();
        return;
      case 1:
        allocator_.decay(now_ms_ += static_cast<std::int64_t>(random_() % 20000));
        return;
      default: {
        Account& isolated = *pools_[kIsolated].account;
        try {
          allocator_.sleep_pool(isolated, true);
        } catch (const PoolStateError&) {
          return;
        } catch (const ConfigError&) {  // of memory that does not sleep
          return;
        }
        if (random_() % 2 == 0) allocator_.trim(0);
        allocator_.wake_pool(isolated);
      }
    }
  }

  void check() {
    CHECK_EQ(allocator_.check_invariants(), "");
    const DeviceStats stats = allocator_.stats();
    CHECK_EQ(static_cast<std::size_t>(stats.blocks.all.bytes.current), model_.total());
    CHECK_EQ(static_cast<std::size_t>(stats.blocks.all.count.current), model_.count());
    CHECK_EQ(stats.blocks.all.bytes.current, stats.blocks.all.bytes.allocated - stats.blocks.all.bytes.freed);
    CHECK_EQ(static_cast<std::size_t>(stats.reserved_bytes.all.current), allocator_.ledger().held());
    CHECK(allocator_.ledger().held() <= allocator_.ledger().limit());
    check_accounts();
  }

  // Each pool is charged with its blocks and those below it, and is there as long as anything keeps it.
  void check_accounts() {
    std::map<std::string, Account> accounts;
    for (const AccountRegistry::Listed& each : allocator_.accounts().list()) accounts[each.account.name] = each.account;
    std::vector<std::size_t> charged(pools_.size());
    std::vector<std::size_t> children(pools_.size());
    std::size_t alive = 0;
    for (std::size_t i = pools_.size(); i-- > 1;) {  // a parent comes before its children
      const Pool& pool = pools_[i];
      charged[i] += model_.sum(i);
      charged[pool.parent] += charged[i];
      const std::size_t stays = stays_.count_in(i);
      const bool is_alive = !pool.is_dropped || charged[i] > 0 || stays > 0 || children[i] > 0;
      children[pool.parent] += is_alive ? 1 : 0;
      alive += is_alive ? 1 : 0;
      const auto found = accounts.find(pool.name);
      CHECK_EQ(found != accounts.end(), is_alive);
      if (!is_alive) continue;
      const Account& account = found->second;
      CHECK_EQ(static_cast<std::size_t>(account.blocks.bytes.current), charged[i]);
      CHECK(static_cast<std::size_t>(account.blocks.bytes.peak) <= pool.limit);
      CHECK_EQ(account.users, stays);
      CHECK_EQ(account.children, children[i]);
      CHECK_EQ(account.closed, pool.is_dropped);
    }
    CHECK_EQ(accounts.size(), alive);
  }

  CachingAllocator& allocator_;
  std::mt19937 random_;
  Model model_;
  Stays stays_;
  std::vector<Pool> pools_{{nullptr, "root", kRoot, kNoLimit}};
  std::int64_t now_ms_ = 0;
};

}  // namespace

TEST(random_walks_on_the_fake_backend) {
  const unsigned first = first_seed();
  unsigned seed = 0;
  std::vector<FakeMemory::Settings> all = fixtures::personalities();
  all.push_back({.personality = FakeMemory::Personality::exact, .granule_bytes = 4096});
  for (const FakeMemory::Settings& settings : all) {
    for (const std::size_t limit : {kNoLimit, 40 * kMiB}) {
      for (const std::size_t cache : {std::size_t{0}, std::size_t{4} << 20}) {
        const FakeDevice device({.limit = limit, .thread_cache_bytes = cache, .segment_bytes = 32 * kMiB}, settings);
        Walk(*device.allocator, first + ++seed).run(3000);
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
    Walk(allocator, first_seed() + 99).run(4000);
    allocator.trim(0);
    CHECK_EQ(allocator.ledger().held(), 0u);
  }
}
