#include "backend/allocated_memory.h"

#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#include "common/align.h"
#include "common/expects.h"

namespace mempool {
namespace {

std::uintptr_t place(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

struct Given {
  void* address;  // as the allocator named it
  std::size_t bytes;
  std::uintptr_t end() const { return place(address) + bytes; }
};

// The allocations behind all segments of the process: one allocator may serve several AllocatedMemory.
class GivenMemory {
 public:
  // False: it overlaps with another one. Throws std::bad_alloc.
  bool add(std::uintptr_t start, const Given& given) {
    const std::lock_guard guard(mutex_);
    if (has_part_of(given)) return false;
    by_start_.emplace(start, given);
    return true;
  }
  bool overlaps(const Given& given) {
    const std::lock_guard guard(mutex_);
    return has_part_of(given);
  }
  bool contains(const void* address) {
    const std::lock_guard guard(mutex_);
    return by_start_.contains(place(address));
  }
  using Entry = std::map<std::uintptr_t, Given>::node_type;
  Entry take(const void* address) {
    const std::lock_guard guard(mutex_);
    return by_start_.extract(place(address));
  }
  void put_back(Entry entry) {
    const std::lock_guard guard(mutex_);
    by_start_.insert(std::move(entry));
  }

 private:
  bool has_part_of(const Given& given) const {
    const auto next = by_start_.lower_bound(place(given.address));
    if (next != by_start_.end() && place(next->second.address) < given.end()) return true;
    return next != by_start_.begin() && std::prev(next)->second.end() > place(given.address);
  }

  std::mutex mutex_;
  std::map<std::uintptr_t, Given> by_start_;  // by where the first granule begins
};

// Immortal: segments may outlive static destruction.
GivenMemory& given_memory() {
  static auto* const all = new GivenMemory;
  return *all;
}

}  // namespace

void* AllocatedMemory::reserve_addresses(std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(is_on_granules(nullptr, bytes));
  Given given{nullptr, bytes + slack_.load(std::memory_order_relaxed)};
  given.address = ask(given.bytes);
  if (place(given.address) % kGranule != 0 && given.bytes == bytes) {
    if (!give_back(given.address, given.bytes)) return nullptr;
    slack_.store(kGranule, std::memory_order_relaxed);
    given.bytes = bytes + kGranule;
    given.address = ask(given.bytes);
  }
  if (given.address == nullptr) return nullptr;
  const std::uintptr_t start = align_up(place(given.address), kGranule);
  try {
    // What overlaps stays with its segment: to give it back would end that one.
    if (!given_memory().add(start, given)) return nullptr;
  } catch (const std::bad_alloc&) {
    give_back(given.address, given.bytes);
    return nullptr;
  }
  return reinterpret_cast<void*>(start);  // NOLINT(performance-no-int-to-ptr)
}

bool AllocatedMemory::overlaps(void* address, std::size_t bytes) noexcept {
  return given_memory().overlaps({address, bytes});
}

// For memory that was never committed. What does not go back stays known.
void AllocatedMemory::free_addresses(void* address, std::size_t) noexcept { return_given(address); }

// The entry goes first: once the memory is back, another thread may be given it.
bool AllocatedMemory::return_given(const void* address) noexcept {
  GivenMemory::Entry entry = given_memory().take(address);
  if (entry.empty()) return false;
  if (give_back(entry.mapped().address, entry.mapped().bytes)) return true;
  given_memory().put_back(std::move(entry));
  return false;
}

bool AllocatedMemory::commit(void* address, std::size_t bytes, Handle& out) noexcept {
  MEMPOOL_EXPECTS(is_on_granules(address, bytes) && given_memory().contains(address));
  out = {address, bytes, 0};
  observe(true, address, bytes);
  return true;
}

bool AllocatedMemory::decommit(const Handle& handle) noexcept {
  observe(false, handle.address, handle.bytes);
  if (return_given(handle.address)) return true;
  observe(true, handle.address, handle.bytes);
  return false;
}

}  // namespace mempool
