#include "backend/allocated_memory.h"

#include <cstdint>
#include <new>

#include "common/align.h"
#include "common/expects.h"

namespace mempool {

void* AllocatedMemory::reserve(std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(is_on_granules(nullptr, bytes));
  const auto place = [](void* address) { return reinterpret_cast<std::uintptr_t>(address); };
  Given given{nullptr, bytes + slack_.load(std::memory_order_relaxed)};
  given.address = ask(given.bytes);
  if (place(given.address) % kGranule != 0 && given.bytes == bytes) {
    if (!give_back(given.address, given.bytes)) return nullptr;
    slack_.store(kGranule, std::memory_order_relaxed);
    given.bytes = bytes + kGranule;
    given.address = ask(given.bytes);
  }
  if (given.address == nullptr) return nullptr;
  void* const address = reinterpret_cast<void*>(align_up(place(given.address), kGranule));  // NOLINT
  try {
    const std::lock_guard guard(mutex_);
    given_.emplace(address, given);
  } catch (const std::bad_alloc&) {
    give_back(given.address, given.bytes);
    return nullptr;
  }
  return address;
}

// For memory that was never committed. What does not go back stays in `given_`.
void AllocatedMemory::unreserve(void* address, std::size_t) noexcept { return_given(address); }

bool AllocatedMemory::is_given(const void* address) noexcept {
  const std::lock_guard guard(mutex_);
  return given_.contains(address);
}

bool AllocatedMemory::return_given(const void* address) noexcept {
  const std::lock_guard guard(mutex_);
  const auto found = given_.find(address);
  if (found == given_.end() || !give_back(found->second.address, found->second.bytes)) return false;
  given_.erase(found);
  return true;
}

bool AllocatedMemory::commit(void* address, std::size_t bytes, Handle& out) noexcept {
  MEMPOOL_EXPECTS(is_on_granules(address, bytes) && is_given(address));
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
