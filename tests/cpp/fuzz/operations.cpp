// A sequence of operations read from bytes, against a model: what a fuzzer feeds, and a test with random bytes.
#include "operations.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend/fake_memory.h"
#include "core/caching_allocator.h"
#include "core/current_pool.h"

namespace mempool::fuzz {
namespace {

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
    pools_.push_back(nullptr);
    pools_.push_back(allocator_->open_pool("limited", nullptr, false, 8 * kMiB, kNoLimit));
    pools_.push_back(allocator_->open_pool("child", pools_[1], false, kNoLimit, 2 * kMiB));
    pools_.push_back(allocator_->open_pool("own", nullptr, true, kNoLimit, kNoLimit));
    pools_.push_back(allocator_->open_pool("other", nullptr, true, 16 * kMiB, kNoLimit));
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

  void one(std::size_t op) {
    switch (op % 16) {
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
        return sleep_or_wake(pools_[3 + input_.next() % 2]);
      case 14:
        memory_->fail_call(input_.next());
        return;
      default:
        return set_limit();
    }
  }

  void allocate() {
    const std::size_t pool = input_.next() % pools_.size();
    const std::size_t code = input_.two();
    const std::size_t bytes = (code & 0xfff) << (code >> 12);  // up to 4095 << 15: 128 MiB
    if (live_ + bytes > kMostLive) return;
    fixtures::set_current_pool(*allocator_, pools_[pool]);
    void* address = nullptr;
    try {
      address = allocator_->allocate(bytes);
    } catch (const OutOfMemory&) {
    } catch (const PoolStateError&) {
    }
    fixtures::set_current_pool(*allocator_, nullptr);
    if (address == nullptr) return;
    const auto fill = static_cast<unsigned char>(++stamp_ | 1);
    std::memset(address, fill, bytes);
    blocks_.push_back({static_cast<unsigned char*>(address), bytes, fill, pool});
    live_ += bytes;
  }

  bool readable(const Block& block) const {
    return pools_[block.pool] == nullptr || !allocator_->pool_asleep(*pools_[block.pool]);
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
    for (const Block& block : blocks_) {
      if (readable(block)) check_contents(block);
    }
  }

  void finish() {
    memory_->fail_call(0);
    while (!blocks_.empty()) free(0);
    for (std::size_t i = pools_.size(); i-- > 1;) allocator_->drop_pool(*pools_[i]);
    require(allocator_->check_invariants().empty(), "invariants at the end");
    allocator_->trim(0);
    require(allocator_->ledger().held() == 0, "bytes are held that nobody uses");
    require(memory_->committed_bytes() == 0 && memory_->reserved_bytes() == 0, "the backend did not get all back");
    require(memory_->violation().empty(), memory_->violation());
  }

  Input& input_;
  FakeMemory* memory_ = nullptr;
  std::unique_ptr<CachingAllocator> allocator_;
  std::vector<Account*> pools_;
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
