// Limits of the device, and every lock around a fork.
#include <memory>

#include "common/bytes.h"
#include "common/errors.h"
#include "core/allocator/caching_allocator.h"

namespace mempool {

std::size_t CachingAllocator::outside_bytes() noexcept {
  parts_.count_outside();
  return parts_.ledger.outside();
}

void CachingAllocator::set_limit(std::size_t limit) {
  std::size_t outside = outside_bytes();
  if (parts_.ledger.set_limit(limit)) return;
  if (outside > 0) {
    parts_.relieve();
    outside = parts_.ledger.outside();
  }
  trim(limit > outside ? limit - outside : 0);
  if (parts_.ledger.set_limit(limit)) return;
  const std::string others =
      outside > 0 ? " and the " + std::to_string(outside) + " bytes that torch's other allocator holds there" : "";
  const std::size_t kept = parts_.arenas.floors();
  throw ConfigError(
      "a limit of " + format_bytes(limit) + " (" + std::to_string(limit) + " bytes) for device " + device() +
      " is below the " + std::to_string(parts_.ledger.held()) + " bytes that it holds even after a trim" + others +
      ": free tensors first" +
      (kept > 0 ? ", or reserve less than the " + std::to_string(kept) + " bytes that are reserved" : "") +
      ". The limit is unchanged.");
}

void CachingAllocator::set_soft_limit(std::size_t limit) noexcept {
  parts_.ledger.set_soft_limit(limit);
  if (parts_.ledger.held() > limit) trim(limit);
}

std::size_t CachingAllocator::trim_pool(Account& pool) noexcept {
  if (!pool.isolated) parts_.caches.recall();
  return trim_family(*pool.family);
}

void CachingAllocator::prepare_fork() {
  parts_.observers.prepare_fork();
  parts_.collector.prepare_fork();
}

void CachingAllocator::lock_for_fork() {
  ThreadRegistry::instance().lock_caches_alone(slot());
  parts_.caches.fold();
  parts_.arenas.lock_for_fork();
  parts_.collector.lock_for_fork();
  parts_.clocks.lock_for_fork();
  parts_.ledger.lock_for_fork().lock();
  parts_.accounts.lock().lock();
  parts_.observers.lock_for_fork();
  parts_.reclaimer.lock_for_fork().lock();
}

void CachingAllocator::after_fork(bool in_child) noexcept {
  parts_.reclaimer.lock_for_fork().unlock();
  parts_.observers.after_fork(in_child);
  if (in_child) parts_.ledger.after_fork_in_child();
  parts_.accounts.lock().unlock();
  parts_.ledger.lock_for_fork().unlock();
  parts_.clocks.unlock_after_fork();
  parts_.collector.unlock_after_fork();
  parts_.arenas.unlock_after_fork();
  ThreadRegistry::instance().unlock_caches_alone(slot());
  // Not held around a fork, which would wait until all memory of a reservation is backed.
  if (in_child) std::construct_at(&reserving_);
}

}  // namespace mempool
