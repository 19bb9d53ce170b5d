#include "core/threads/thread_registry.h"

#include <algorithm>
#include <memory>
#include <new>
#include <stdexcept>

#include "common/expects.h"

namespace mempool {

constinit thread_local ThreadCaches* t_caches __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {
constinit thread_local bool t_ended = false;
}

// Its destructor runs at thread exit. Frees that come after it (from other thread-locals' destructors) find no cache.
struct ThreadExit {
  ~ThreadExit() {
    t_ended = true;
    ThreadCaches* const caches = t_caches;
    t_caches = nullptr;
    if (caches == nullptr) return;
    ThreadRegistry& registry = ThreadRegistry::instance();
    const std::lock_guard guard(registry.mutex);
    std::erase(registry.threads_, caches);
    registry.retire(caches);
  }
  bool armed = false;
};

namespace {
thread_local ThreadExit t_exit;
}  // namespace

ThreadRegistry& ThreadRegistry::instance() {
  static ThreadRegistry* const registry = new ThreadRegistry;  // immortal
  return *registry;
}

std::size_t ThreadRegistry::add_allocator() {
  const std::lock_guard guard(mutex);
  const auto slot = std::find(taken_.begin(), taken_.end(), false);
  if (slot == taken_.end()) throw std::runtime_error("mempool: more than 64 allocators in one process");
  *slot = true;
  return static_cast<std::size_t>(slot - taken_.begin());
}

void ThreadRegistry::remove_allocator(std::size_t slot) {
  const std::lock_guard guard(mutex);
  MEMPOOL_EXPECTS(taken_[slot]);
  for (ThreadCaches* caches : threads_) {
    delete caches->by_slot[slot];
    caches->by_slot[slot] = nullptr;
  }
  taken_[slot] = false;
}

void ThreadRegistry::lock_caches(std::size_t slot) noexcept {
  mutex.lock();
  lock_caches_alone(slot);
}

void ThreadRegistry::lock_caches_alone(std::size_t slot) noexcept {
  for_each(slot, [](ThreadCache& cache) { cache.lock.ask(); });
  OwnerLock::pass_barrier();
  for_each(slot, [](ThreadCache& cache) { cache.lock.await(); });
}

void ThreadRegistry::unlock_caches(std::size_t slot) noexcept {
  unlock_caches_alone(slot);
  mutex.unlock();
}

void ThreadRegistry::unlock_caches_alone(std::size_t slot) noexcept {
  for_each(slot, [](ThreadCache& cache) { cache.lock.release(); });
}

ThreadCache* ThreadRegistry::obtain(std::size_t slot, ThreadCache::Owner& owner, Arena& arena,
                                    std::size_t most_bytes) noexcept {
  if (ThreadCache* present = find(slot)) return present;
  if (t_ended) return nullptr;
  try {
    t_exit.armed = true;  // the first use of the variable registers its destructor
    auto cache = std::make_unique<ThreadCache>(owner, arena, most_bytes);
    const std::lock_guard guard(mutex);
    if (t_caches == nullptr) {
      auto caches = std::make_unique<ThreadCaches>();
      threads_.push_back(caches.get());
      t_caches = caches.release();
    }
    return t_caches->by_slot[slot] = cache.release();
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void ThreadRegistry::retire(ThreadCaches* caches) noexcept {
  for (ThreadCache* cache : caches->by_slot) {
    if (cache == nullptr) continue;
    cache->owner.take_back(*cache);
    delete cache;
  }
  delete caches;
}

void ThreadRegistry::adopt_orphans(const Slots& slots) noexcept {
  const std::lock_guard guard(mutex);
  for (ThreadCaches* caches : threads_) {
    if (caches == t_caches) continue;
    for (std::size_t slot = 0; slot < kMaxAllocators; ++slot) {
      ThreadCache*& cache = caches->by_slot[slot];
      if (!slots[slot]) cache = nullptr;
      if (cache != nullptr) cache->lock.forget_owner();
    }
    retire(caches);
  }
  threads_.clear();
  if (t_caches != nullptr) threads_.push_back(t_caches);  // capacity is kept: this cannot throw
}

}  // namespace mempool
