// Every lock around a fork.
#include "core/allocator/caching_allocator.h"

namespace mempool {

void CachingAllocator::prepare_fork() {
  observers_mutex_.lock();
  collecting_.lock();
}

void CachingAllocator::lock_for_fork() {
  ThreadRegistry::instance().lock_caches_alone(slot_);
  arenas_mutex_.lock();
  for (const auto& arena : arenas_) arena->mutex.lock();
  deferred_.lock_for_fork().lock();
  clocks_.lock_for_fork();
  ledger_.lock_for_fork().lock();
  history_.lock_for_fork().lock();
  recorder_.lock_for_fork().lock();
  demand_mutex_.lock();
}

void CachingAllocator::after_fork(bool in_child) noexcept {
  if (in_child) {
    recorder_.abandon();
    update_observed();
  }
  demand_mutex_.unlock();
  recorder_.lock_for_fork().unlock();
  history_.lock_for_fork().unlock();
  ledger_.lock_for_fork().unlock();
  clocks_.unlock_after_fork();
  deferred_.lock_for_fork().unlock();
  for (const auto& arena : arenas_) arena->mutex.unlock();
  arenas_mutex_.unlock();
  ThreadRegistry::instance().unlock_caches_alone(slot_);
  collecting_.unlock();
  observers_mutex_.unlock();
}

}  // namespace mempool
