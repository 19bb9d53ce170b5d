// Frees blocks that other streams than their own use: each once those streams have caught up with its free.
//
// From deallocate() to that moment a block is charged to no pool and counts as waiting; its pool stays alive for it.
//
// The next request of its rounded size notices that moment: while a block of its size waits, each request asks the
// device first (collect_for()), and what is over is free before the request is served. A small block then comes first
// in the cache of the thread that asks; a larger one coalesces in its arena. Small and medium blocks share events: the
// moment is that of the next event, which the first of these requests records.
//
// A request of a size that waits costs, for each stream that blocks wait for, at most one event (if a block was freed
// there since the last one) and one query that is answered with "not yet"; each event is found done once. A request of
// another size asks nothing, unless its arena has run out of free memory.
#pragma once

#include <cstddef>
#include <mutex>

#include "core/accounts/account_registry.h"
#include "core/accounts/ledger.h"
#include "core/allocator/deferred_frees.h"
#include "core/allocator/found_block.h"
#include "core/allocator/pools.h"
#include "core/observe/observers.h"

namespace mempool {

class StreamCollector {
 public:
  StreamCollector(AccountRegistry& accounts, Ledger& ledger, Pools& pools, Observers& observers, Detours& detours)
      : accounts_(accounts), ledger_(ledger), pools_(pools), observers_(observers), deferred_(detours) {}

  // Work on the clock's stream uses the live block, too. Throws std::bad_alloc.
  void add_use(const FoundBlock& block, const void* address, StreamClock& clock);
  // A block that add_use() was called for is freed by a thread with that cache (nullptr: it has none).
  void defer(const FoundBlock& block, void* address, ThreadCache* mine) noexcept;

  // Frees blocks whose streams have caught up; leaves it to another thread that is at it. `keeper`: the calling
  // thread's cache, whose lock it does not hold, for those small blocks that may wait there; nullptr: for none.
  void collect(ThreadCache* keeper = nullptr) noexcept;
  // The same for a request of that size, if a block of its size may wait and would not be found without it.
  void collect_for(std::size_t rounded, ThreadCache* keeper) noexcept {
    if (deferred_.may_have(rounded)) collect(keeper);
  }
  // Waits until blocks of together `bytes` are free that had to wait for other streams. False: there were none.
  bool await(std::size_t bytes) noexcept;
  // Waits for all of them.
  void await_all() noexcept {
    while (await(0)) continue;
  }

  // ---- fork, in this order; the other locks of the process are taken in between
  void prepare_fork() { collecting_.lock(); }
  void lock_for_fork() { deferred_.lock_for_fork().lock(); }
  void unlock_after_fork() noexcept {
    deferred_.lock_for_fork().unlock();
    collecting_.unlock();
  }

 private:
  void collect_all() noexcept;
  void free_collected(ThreadCache* keeper) noexcept;
  void end(const FoundBlock& block, void* address, BlockSize size, std::uint32_t account, ThreadCache* keeper) noexcept;

  AccountRegistry& accounts_;
  Ledger& ledger_;
  Pools& pools_;
  Observers& observers_;
  DeferredFrees deferred_;
  std::mutex collecting_;  // held until what was collected is free
};

}  // namespace mempool
