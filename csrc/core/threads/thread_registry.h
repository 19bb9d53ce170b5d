// The thread caches of the process, by thread and allocator: each allocator has a slot in this one registry.
#pragma once

#include <array>
#include <cstddef>
#include <mutex>
#include <vector>

#include "core/threads/thread_cache.h"

namespace mempool {

inline constexpr std::size_t kMaxAllocators = 64;

struct ThreadCaches {
  std::array<ThreadCache*, kMaxAllocators> by_slot{};
};

// nullptr until the thread's first allocation, and again once its thread-locals are destroyed.
extern constinit thread_local ThreadCaches* t_caches __attribute__((tls_model("initial-exec")));

class ThreadRegistry {
 public:
  static ThreadRegistry& instance();

  // A free slot. Throws std::runtime_error when all are taken.
  std::size_t add_allocator();
  // Deletes the caches of the slot without touching the arena. Expects that no thread uses the allocator any more.
  void remove_allocator(std::size_t slot);

  static ThreadCache* find(std::size_t slot) noexcept {
    return t_caches != nullptr ? t_caches->by_slot[slot] : nullptr;
  }
  // The calling thread's cache, made at its first use. nullptr for a thread that is ending, or without memory: the
  // caller then goes straight to the arena.
  ThreadCache* obtain(std::size_t slot, ThreadCache::Owner& owner, Arena& arena, std::size_t most_bytes) noexcept;

  // `mutex` must be held: no cache comes or goes.
  template <typename Action>
  void for_each(std::size_t slot, Action action) {
    for (ThreadCaches* caches : threads_) {
      if (caches->by_slot[slot] != nullptr) action(*caches->by_slot[slot]);
    }
  }
  std::mutex mutex;

  // Takes the mutex and the lock of every cache of the slot, so that sums over them belong to one moment.
  void lock_caches(std::size_t slot) noexcept;
  void unlock_caches(std::size_t slot) noexcept;
  // The same without the mutex, which is held.
  void lock_caches_alone(std::size_t slot) noexcept;
  void unlock_caches_alone(std::size_t slot) noexcept;

  // In a forked child: the threads that own the other caches do not exist here. The blocks of the allocators that took
  // part in the fork return to their arenas. Other allocators were caught in whatever they were doing: what their
  // caches hold is given up.
  using Slots = std::array<bool, kMaxAllocators>;
  void adopt_orphans(const Slots& slots) noexcept;

 private:
  friend struct ThreadExit;
  void retire(ThreadCaches* caches) noexcept;

  std::vector<ThreadCaches*> threads_;
  std::array<bool, kMaxAllocators> taken_{};
};

// Holds every thread's cache of one allocator.
class AllCaches {
 public:
  explicit AllCaches(std::size_t slot) noexcept : slot_(slot) { ThreadRegistry::instance().lock_caches(slot_); }
  AllCaches(const AllCaches&) = delete;
  AllCaches& operator=(const AllCaches&) = delete;
  ~AllCaches() { ThreadRegistry::instance().unlock_caches(slot_); }
  template <typename Action>
  void for_each(Action action) {
    ThreadRegistry::instance().for_each(slot_, action);
  }

 private:
  const std::size_t slot_;
};

}  // namespace mempool
