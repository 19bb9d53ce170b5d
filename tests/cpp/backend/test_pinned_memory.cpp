// Page-locked memory: one registration for each reservation, and what a driver's refusal leaves.
#include <map>
#include <memory>

#include "backend/pinned_memory.h"
#include "check.h"
#include "core/allocator/caching_allocator.h"
#include "core/allocator/found_block.h"

using namespace mempool;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

// What a driver has locked. Outlives the memory, which owns the registrar.
struct Driver {
  std::map<std::uintptr_t, std::size_t> locked{};
  int error = 0;
  bool is_cut_off = false;

  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const auto& [start, bytes] : locked) sum += bytes;
    return sum;
  }
  bool is_in_one(const void* address, std::size_t bytes) const {
    const auto start = reinterpret_cast<std::uintptr_t>(address);
    const auto next = locked.upper_bound(start);
    return next != locked.begin() && start + bytes <= std::prev(next)->first + std::prev(next)->second;
  }
};

class Registrar final : public HostRegistrar {
 public:
  explicit Registrar(Driver& driver) : driver_(driver) {}
  int lock(void* address, std::size_t bytes) noexcept override {
    if (driver_.error == 0) driver_.locked[reinterpret_cast<std::uintptr_t>(address)] = bytes;
    return driver_.error;
  }
  int unlock(void* address) noexcept override {
    if (driver_.error == 0) driver_.locked.erase(reinterpret_cast<std::uintptr_t>(address));
    return driver_.error;
  }
  bool is_cut_off() const noexcept override { return driver_.is_cut_off; }

 private:
  Driver& driver_;
};

struct Pinned {
  explicit Pinned(const Options& options = {}) {
    auto made = std::make_unique<PinnedMemory>(std::make_unique<Registrar>(driver), nullptr, true);
    memory = made.get();
    allocator = std::make_unique<CachingAllocator>("pinned", std::move(made), options);
  }
  Driver driver;
  PinnedMemory* memory = nullptr;
  std::unique_ptr<CachingAllocator> allocator;
};

}  // namespace

TEST(each_block_lies_in_one_registration) {
  Pinned pinned;
  std::vector<std::pair<void*, std::size_t>> blocks;
  for (std::size_t i = 0; i < 400; ++i) {
    const std::size_t bytes = (i % 7 + 1) * (i % 3 == 0 ? 3000 : i % 3 == 1 ? 150'000 : 900'000) + i;
    blocks.emplace_back(pinned.allocator->allocate(bytes), bytes);
    if (i % 5 != 0) continue;
    pinned.allocator->deallocate(blocks[i / 2].first);
    blocks[i / 2].first = nullptr;
  }
  for (const auto& [block, bytes] : blocks) CHECK(block == nullptr || pinned.driver.is_in_one(block, bytes));
  CHECK_EQ(pinned.allocator->ledger().held(), pinned.driver.bytes());
  CHECK_EQ(pinned.allocator->check_invariants(), "");
  for (const auto& [block, bytes] : blocks) CHECK(pinned.allocator->deallocate(block));
  pinned.allocator->trim(0);
  CHECK_EQ(pinned.driver.bytes(), 0u);
}

TEST(a_large_block_locks_its_own_pages_and_no_more) {
  Pinned pinned;
  void* const block = pinned.allocator->allocate(9 * kMiB + 1);
  CHECK_EQ(pinned.driver.bytes(), 9 * kMiB + pinned.memory->granule_bytes());
  CHECK_EQ(pinned.memory->figures().locking.count, 1);
  CHECK_EQ(pinned.memory->figures().locked_by_size[24], 1);  // up to 16 MiB
  pinned.allocator->deallocate(block);
  pinned.allocator->trim(0);
  CHECK_EQ(pinned.driver.bytes(), 0u);
  CHECK_EQ(pinned.memory->figures().unlocking.count, 1);
}

// torch rounds to powers of two: from blocks of 2^k + 1 bytes it would lock twice as much.
TEST(what_is_locked_is_hardly_more_than_what_is_live) {
  for (const std::size_t bytes : {kMiB / 3 + 1, kMiB * 2 / 3 + 1, kMiB + 1, 3 * kMiB + 1, 17 * kMiB + 1, 129 * kMiB}) {
    Pinned pinned;
    std::vector<void*> blocks;
    for (std::size_t live = 0; live < 400 * kMiB; live += bytes) {
      blocks.push_back(pinned.allocator->allocate(bytes));
      if (live >= 256 * kMiB) CHECK(pinned.driver.bytes() <= (live + bytes) / 20 * 21);
    }
    for (void* const block : blocks) pinned.allocator->deallocate(block);
  }
}

TEST(free_registrations_go_before_more_is_locked_than_was_ever_live) {
  Pinned pinned;
  std::vector<void*> blocks;
  for (int i = 0; i < 20; ++i) blocks.push_back(pinned.allocator->allocate(10 * kMiB));
  for (void* const block : blocks) pinned.allocator->deallocate(block);
  void* const longer = pinned.allocator->allocate(100 * kMiB);
  CHECK(pinned.driver.bytes() <= 200 * kMiB / 32 * 33);
  CHECK_EQ(pinned.allocator->check_invariants(), "");
  pinned.allocator->deallocate(longer);
}

TEST(a_refusal_is_named_and_changes_nothing) {
  Pinned pinned;
  void* const kept = pinned.allocator->allocate(2 * kMiB);
  const std::size_t before = pinned.driver.bytes();
  pinned.driver.error = 2;
  try {
    pinned.allocator->allocate(8 * kMiB);
    CHECK(false);
  } catch (const OutOfMemory& error) {
    CHECK(std::string(error.what()).find("page-lock 8.00 MiB (error 2)") != std::string::npos);
  }
  CHECK_EQ(pinned.driver.bytes(), before);
  pinned.allocator->deallocate(kept);
  CHECK_EQ(pinned.allocator->trim(0), 0u);  // it does not unlock either
  CHECK_EQ(pinned.allocator->ledger().held(), before);
  pinned.driver.error = 0;
  CHECK_EQ(pinned.allocator->trim(0), before);
}

// A forked child: the pages are there, and the driver is not.
TEST(nothing_is_unlocked_where_the_driver_is_out_of_reach) {
  Pinned pinned;
  void* const block = pinned.allocator->allocate(2 * kMiB);
  pinned.driver.is_cut_off = true;
  pinned.allocator->deallocate(block);
  CHECK_EQ(pinned.allocator->trim(0), 0u);
  CHECK_EQ(pinned.driver.locked.size(), 1u);
  pinned.driver.is_cut_off = false;
}
