// Every lock around a fork.
#include "core/allocator/caching_allocator.h"

namespace mempool {

void CachingAllocator::prepare_fork() {
  observers_.prepare_fork();
  collecting_.lock();
}

void CachingAllocator::lock_for_fork() {
  ThreadRegistry::instance().lock_caches_alone(slot_);
  arenas_mutex_.lock();
  for (const auto& arena : arenas_) arena->mutex.lock();
  deferred_.lock_for_fork().lock();
  clocks_.lock_for_fork();
  accounts_.lock().lock();
  observers_.lock_for_fork();
  demand_mutex_.lock();
}

void CachingAllocator::after_fork(bool in_child) noexcept {
  demand_mutex_.unlock();
  observers_.after_fork(in_child);
  accounts_.lock().unlock();
  clocks_.unlock_after_fork();
  deferred_.lock_for_fork().unlock();
  for (const auto& arena : arenas_) arena->mutex.unlock();
  arenas_mutex_.unlock();
  ThreadRegistry::instance().unlock_caches_alone(slot_);
  collecting_.unlock();
}

}  // namespace mempool
