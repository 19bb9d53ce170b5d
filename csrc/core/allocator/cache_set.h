// The thread caches of one allocator, together: taking back what waits in them, and summing what they have counted.
#pragma once

#include <cstddef>

#include "core/accounts/ledger.h"
#include "core/threads/thread_registry.h"

namespace mempool {

class CacheSet {
 public:
  // New caches serve the family's first arena. Throws std::runtime_error when the process has no slot for one more
  // allocator.
  CacheSet(Ledger& ledger, ThreadCache::Owner& owner, ArenaFamily& family, std::size_t most_small_bytes);
  CacheSet(const CacheSet&) = delete;
  CacheSet& operator=(const CacheSet&) = delete;
  // Expects that no other thread uses the allocator.
  ~CacheSet();

  std::size_t slot() const noexcept { return slot_; }  // in the ThreadRegistry
  // The calling thread's cache; nullptr when it has none yet. obtain() makes it then, unless the thread is ending.
  ThreadCache* find() const noexcept { return ThreadRegistry::find(slot_); }
  ThreadCache* obtain() noexcept {
    ThreadCache* const found = find();
    return found != nullptr ? found : make();
  }

  // Takes the free blocks out of every thread's cache.
  void recall() noexcept;
  // Returns blocks in caches to the arena, which coalesces them: medium and large blocks of all threads, and small ones
  // where that is worthwhile. `mine` (nullptr: none) is the calling thread's.
  void recall_for_growth(ThreadCache* mine) noexcept;
  // Folds every thread's counts into the ledger and suspends leases, where a block of `mine` (nullptr: of a thread
  // without a cache) could be a new peak.
  void fold_for_peak(ThreadCache* mine) noexcept;
  // The same, and confirms a block of `account` before any thread can go on: see Ledger::confirm().
  Ledger::Charge confirm_for_peak(Account* account, BlockSize size, ThreadCache* mine) noexcept;
  // Folds the counts. Returns what has waited in the caches all the time since the last call.
  ThreadCache::Unused fold_and_take_unused() noexcept;

  // Folds the counts. Expects that the registry's mutex and every cache's lock are held.
  void fold() noexcept {
    ThreadRegistry::instance().for_each(slot_, [this](ThreadCache& cache) { ledger_.fold(cache.shards); });
  }

  // The two ends of a cached block's way that has used up its lease, or is far behind the totals. They expect that the
  // cache's lock is held, and return `address` and true.
  [[gnu::noinline]] void* settle_and_unlock(ThreadCache& mine, bool is_small, void* address) noexcept;
  [[gnu::noinline]] bool ease_and_unlock(ThreadCache& mine, bool is_small) noexcept;

  // Holds every thread's cache, with its counts folded: the totals are of one moment as long as this exists.
  class Folded {
   public:
    explicit Folded(CacheSet& set) noexcept : caches_(set.slot_) {
      caches_.for_each([&set](ThreadCache& cache) { set.ledger_.fold(cache.shards); });
    }

   private:
    AllCaches caches_;
  };

 private:
  ThreadCache* make() noexcept;
  static void flush_for_growth(ThreadCache& cache) noexcept;

  Ledger& ledger_;
  ThreadCache::Owner& owner_;
  ArenaFamily& family_;
  const std::size_t most_small_bytes_;
  const std::size_t slot_;
};

}  // namespace mempool
