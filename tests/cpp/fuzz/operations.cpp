// A sequence of operations read from bytes, against a model: what a fuzzer feeds, and a test with random bytes.
#include "operations.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "backend/fake_memory.h"
#include "core/allocator/caching_allocator.h"
#include "core/pages/size_classes.h"
#include "core/stays.h"

namespace mempool::fuzz {
namespace {

using fixtures::Stays;

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::size_t kMostLive = 48 * kMiB;  // keeps a run within the machine

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : data_(data), end_(data + size) {}
  bool empty() const { return data_ == end_; }
  std::size_t next() { return empty() ? 0 : *data_++; }
  std::size_t two() { return next() << 8 | next(); }

 private:
  const std::uint8_t* data_;
  const std::uint8_t* end_;
};

void require(bool holds, const std::string& what) {
  if (!holds) throw std::logic_error(what);
}

class Machine {
 public:
  explicit Machine(Input& input) : input_(input) {
    const std::size_t kind = input.next();
    FakeMemory::Settings settings;
    if (kind & 1) settings.personality = FakeMemory::Personality::device;
    if (kind & 2) settings.granule_bytes = std::size_t{64} << 10;
    Options options{.segment_bytes = 16 * kMiB};
    if (kind & 4) options.limit = 24 * kMiB;
    if (kind & 8) options.soft_limit = 12 * kMiB;
    if (kind & 16) options.thread_cache_bytes = 0;
    if (kind & 32) options.stitch = false;
    auto memory = std::make_unique<FakeMemory>(settings);
    memory_ = memory.get();
    allocator_ = std::make_unique<CachingAllocator>("fuzz", std::move(memory), options);
    stays_ = std::make_unique<Stays>(*allocator_);
    pools_.push_back({});
    open_pool("limited", kRoot, false, 8 * kMiB, kNoLimit);
    open_pool("child", 1, false, kNoLimit, 2 * kMiB);
    open_pool("own", kRoot, true, kNoLimit, kNoLimit);
    open_pool("other", kRoot, true, 16 * kMiB, kNoLimit);
    renew();
  }

  void run() {
    for (std::size_t step = 0; !input_.empty(); ++step) {
      one(input_.next());
      if (step % 16 == 0) check();
    }
    finish();
  }

 private:
  struct Block {
    unsigned char* address;
    std::size_t bytes;
    unsigned char fill;
    std::size_t pool;
  };

  static constexpr std::size_t kRoot = 0;
  struct Pool {
    Account* account = nullptr;  // as long as anything keeps it
    std::string name = "root";
    std::size_t parent = kRoot;
    bool is_dropped = false;
    std::size_t charged = 0;  // bytes, rounded, without those of the pools below
  };

  void open_pool(const std::string& name, std::size_t parent, bool isolated, std::size_t limit, std::size_t soft) {
    pools_.push_back({allocator_->pools().open(name, pools_[parent].account, isolated, limit, soft), name, parent});
  }
  // A pool for a while, the last of all: stays and blocks outlive its handle.
  void renew() {
    const std::size_t number = pools_.size();
    open_pool("request " + std::to_string(number), number % 2, number % 3 == 0, 4 * kMiB, kNoLimit);
  }
  // One of the first five, or the last.
  std::size_t any_pool(std::size_t code) const { return code % 6 < 5 ? code % 6 : pools_.size() - 1; }

  void one(std::size_t op) {
    switch (op % 20) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
      case 5:
        return allocate();
      case 6:
      case 7:
      case 8:
      case 9:
        return free(input_.two());
      case 10:
        allocator_->trim(input_.next() * kMiB / 4);
        return;
      case 11:
        allocator_->defragment();
        return;
      case 12:
        allocator_->decay(now_ms_ += static_cast<std::int64_t>(input_.two()));
        return;
      case 13:
        return sleep_or_wake(pools_[3 + input_.next() % 2].account);
      case 14:
        memory_->fail_call(input_.next());
        return;
      case 15:
        return set_limit();
      case 16:
      case 17:
        return enter(input_.next());
      case 18:
        return leave(input_.two());
      default:
        return end_some(input_.next());
    }
  }

  void enter(std::size_t code) {
    if (stays_->count() >= 24) return;
    const std::size_t pool = any_pool(code / Stays::kThreads);
    stays_->enter(code % Stays::kThreads, pools_[pool].account, pool);
  }
  void leave(std::size_t code) {
    if (stays_->count() > 0) stays_->leave(code / Stays::kThreads, code % Stays::kThreads);
  }
  // The thread leaves the pools above a depth, or it ends, or the last pool is dropped.
  void end_some(std::size_t code) {
    const std::size_t thread = code % Stays::kThreads;
    switch (code / Stays::kThreads % 3) {
      case 0:
        return stays_->leave_above(thread, code / 9 % 4);
      case 1:
        return stays_->end_thread(thread);
      default:
        drop(pools_.size() - 1);
        return renew();
    }
  }
  void drop(std::size_t pool) {
    if (!std::exchange(pools_[pool].is_dropped, true)) allocator_->pools().drop(*pools_[pool].account);
  }

  // In the pool that the thread is in, or in one that it enters for this.
  void allocate() {
    const std::size_t choice = input_.next();
    const std::size_t code = input_.two();
    const std::size_t bytes = (code & 0xfff) << (code >> 12);  // up to 4095 << 15: 128 MiB
    if (live_ + bytes > kMostLive) return;
    const std::size_t thread = choice / 12 % Stays::kThreads;
    const bool enters = choice % 2 == 0;
    if (enters) {
      const std::size_t entered = any_pool(choice / 2);
      stays_->enter(thread, pools_[entered].account, entered);
    }
    const std::size_t pool = stays_->pool_of(thread);
    void* address = nullptr;
    bool is_closed = false;
    try {
      stays_->on(thread, [&] { address = allocator_->allocate(bytes); });
    } catch (const OutOfMemory&) {
    } catch (const PoolClosedError&) {
      is_closed = true;
    } catch (const PoolAsleepError&) {
    }
    if (enters) stays_->leave_top(thread);
    require(is_closed == (pools_[pool].is_dropped && bytes > 0), "a closed pool and no other refuses as one");
    if (address == nullptr) return;
    const auto fill = static_cast<unsigned char>(++stamp_ | 1);
    std::memset(address, fill, bytes);
    blocks_.push_back({static_cast<unsigned char*>(address), bytes, fill, pool});
    live_ += bytes;
    pools_[pool].charged += round_block(bytes);
  }

  bool readable(const Block& block) const {
    Account* const pool = pools_[block.pool].account;
    return pool == nullptr || !allocator_->pool_asleep(*pool);
  }

  void free(std::size_t which) {
    if (blocks_.empty()) return;
    std::swap(blocks_[which % blocks_.size()], blocks_.back());
    const Block block = blocks_.back();
    blocks_.pop_back();
    if (readable(block)) check_contents(block);
    require(allocator_->deallocate(block.address), "a live block was not known");
    require(!allocator_->deallocate(block.address + 1), "an address inside a block was taken for one");
    live_ -= block.bytes;
    pools_[block.pool].charged -= round_block(block.bytes);
  }

  void sleep_or_wake(Account* pool) {
    try {
      if (allocator_->pool_asleep(*pool)) {
        allocator_->wake_pool(*pool);
      } else {
        allocator_->sleep_pool(*pool, true);
      }
    } catch (const OutOfMemory&) {
    } catch (const PoolStateError&) {
    }
  }

  void set_limit() {
    const std::size_t code = input_.next();
    try {
      allocator_->set_limit(code == 0 ? kNoLimit : code * kMiB / 4);
    } catch (const ConfigError&) {
    }
  }

  void check_contents(const Block& block) const {
    for (const std::size_t at : {std::size_t{0}, block.bytes / 2, block.bytes - 1}) {
      require(block.address[at] == block.fill, "a block does not hold what was written");
    }
  }

  void check() {
    const std::string broken = allocator_->check_invariants();
    require(broken.empty(), broken);
    require(memory_->violation().empty(), memory_->violation());
    require(memory_->committed_bytes() == allocator_->ledger().held(), "held bytes against the backend's");
    check_accounts();
    for (const Block& block : blocks_) {
      if (readable(block)) check_contents(block);
    }
  }

  // Each pool is charged with its blocks and those below it, and is there as long as anything keeps it.
  void check_accounts() {
    std::map<std::string, Account> accounts;
    for (const AccountRegistry::Listed& each : allocator_->accounts().list())
      accounts[each.account.name] = each.account;
    std::vector<std::size_t> charged(pools_.size());
    std::vector<std::size_t> children(pools_.size());
    for (std::size_t i = pools_.size(); i-- > 1;) {  // a parent comes before its children
      const Pool& pool = pools_[i];
      charged[i] += pool.charged;
      charged[pool.parent] += charged[i];
      const std::size_t stays = stays_->count_in(i);
      const bool is_alive = !pool.is_dropped || charged[i] > 0 || stays > 0 || children[i] > 0;
      const auto found = accounts.find(pool.name);
      require((found != accounts.end()) == is_alive, "a pool is there as long as anything keeps it");
      if (!is_alive) continue;
      ++children[pool.parent];
      const Account& account = found->second;
      require(static_cast<std::size_t>(account.blocks.bytes.current) == charged[i], "what a pool is charged with");
      require(account.users == stays, "who is in a pool");
    }
    const auto all = static_cast<std::size_t>(allocator_->stats().blocks.all.bytes.current);
    require(all == charged[kRoot] + pools_[kRoot].charged, "what the device is charged with");
  }

  void finish() {
    memory_->fail_call(0);
    for (std::size_t thread = 0; thread < Stays::kThreads; ++thread) stays_->leave_above(thread, 0);
    while (!blocks_.empty()) free(0);
    for (std::size_t i = pools_.size(); i-- > 1;) drop(i);
    require(allocator_->accounts().list().empty(), "pools that nobody keeps");
    require(allocator_->check_invariants().empty(), "invariants at the end");
    allocator_->trim(0);
    require(allocator_->ledger().held() == 0, "bytes are held that nobody uses");
    require(memory_->committed_bytes() == 0 && memory_->reserved_bytes() == 0, "the backend did not get all back");
    require(memory_->violation().empty(), memory_->violation());
  }

  Input& input_;
  FakeMemory* memory_ = nullptr;
  std::unique_ptr<CachingAllocator> allocator_;
  std::unique_ptr<Stays> stays_;
  std::vector<Pool> pools_;
  std::vector<Block> blocks_;
  std::size_t live_ = 0;
  unsigned stamp_ = 0;
  std::int64_t now_ms_ = 0;
};

}  // namespace

void run_operations(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  Machine(input).run();
}

}  // namespace mempool::fuzz
