// All arenas of one device, in their families: an arena is made at the first request of its stream, and destroyed when
// its family is closed and it holds no memory any more.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "common/options.h"
#include "core/accounts/ledger.h"
#include "core/pages/arena.h"
#include "core/physical_memory.h"
#include "core/streams/stream_clock.h"

namespace mempool {

using ArenaGuard = std::lock_guard<CountedMutex>;

class ArenaSet {
 public:
  // Makes the default family with its first arena. Throws std::bad_alloc.
  ArenaSet(CachingAllocator& owner, PhysicalMemory& memory, Ledger& ledger, StreamClocks& clocks,
           const Options& options);
  ArenaSet(const ArenaSet&) = delete;
  ArenaSet& operator=(const ArenaSet&) = delete;

  // Serves every pool that is not isolated.
  ArenaFamily& default_family() const noexcept { return *default_family_; }
  ArenaFamily& family_of(const Account* account) const noexcept {
    return account != nullptr ? *account->family : *default_family_;
  }
  // A family apart from all others. In one that is `fixed` no memory ever moves, goes to others or back to the backend
  // before it is closed, free or not: a captured graph writes there whenever it is replayed. It takes what is idle
  // elsewhere, unless it has memory of its own. Throws std::bad_alloc.
  ArenaFamily& open(std::string name, ArenaFamily::Kind kind, ArenaFamily::MemoryFactory make_memory = nullptr);
  // Ends allocation from the family. Its free memory is released at once, but for the device's in a fixed family, which
  // goes when others need it. An arena is destroyed at the first release that leaves it without memory.
  void close(ArenaFamily& family) noexcept;
  // The family's arena for the stream, made if there is none. nullptr without memory for its record.
  Arena* arena_of(ArenaFamily& family, StreamId stream) noexcept;
  std::vector<Arena*> arenas_of(const ArenaFamily& family);

  // Releases free memory to the backend, at least `bytes` if that much is free in whole handles. Returns the released
  // bytes, as the functions below do. `may_wait`: for work that still uses the memory. With 0 bytes it drops empty
  // segments. No family is left with less than its floor, but for that of `asker`, which needs the memory itself.
  std::size_t release(std::size_t bytes, bool may_wait, const ArenaFamily* asker = nullptr) noexcept;
  // All free memory of the family above its floor, or `bytes` of it.
  std::size_t release(ArenaFamily& family, std::size_t bytes = SIZE_MAX) noexcept;
  // The same for a request of that family, which may be fixed: nothing where a captured graph writes to free memory.
  std::size_t release_for(ArenaFamily& family) noexcept;
  // All free memory of closed families.
  std::size_t release_closed() noexcept;
  // All free memory of a family from which no thread can allocate any more. `is_empty`: no block is left in it, and the
  // contents of its sleeping memory are dropped.
  void clear_out(ArenaFamily& family, bool is_empty) noexcept;
  // Closes a family in which no block is left, and drops the contents of its sleeping memory.
  void retire(ArenaFamily& family) noexcept;

  // The other arenas with free memory, locked: their free memory moves to the arena that grows before the backend is
  // asked for more. Expects that the calling thread holds no arena's lock.
  class Lenders {
   public:
    // Empty unless `wanted`.
    Lenders(ArenaSet& set, const Arena& own, bool wanted);
    std::span<PageHeap* const> heaps() const { return heaps_; }

   private:
    std::unique_lock<std::mutex> registry_;
    std::vector<PageHeap*> heaps_;
    std::vector<std::unique_lock<CountedMutex>> locks_;
  };

  // Sets the access rights of all mapped memory again, after the set of devices that may use it has changed.
  bool open_again() noexcept;
  // Remaps the free memory of each arena into one range, as far as it can be moved (defragmentation).
  Gathering gather() noexcept;

  // ---- sums over all arenas, each of which is read under its lock
  std::size_t held_bytes() noexcept;
  std::size_t held_bytes(const ArenaFamily& family) noexcept;
  std::size_t floors() noexcept;  // what is kept for families, used or not
  // Whether each family's reserved bytes are what its arenas hold. Expects that every other thread is at rest.
  bool reserved_is_exact() noexcept;
  std::size_t free_bytes() noexcept;    // in free ranges
  std::size_t need() noexcept;          // as PageHeap::need(), and what is kept for families that do not need it
  std::size_t take_need() noexcept;     // and marks what is free, so that it is known at the next call what is idle
  std::size_t largest_free() noexcept;  // the largest contiguous free range
  FreeRangeStats free_ranges() noexcept;
  CountedMutex::Counts lock_counts() noexcept;  // by single blocks, of all arenas that there were; never reset
  void reset(void (*action)(Stat&)) noexcept;
  // The first broken invariant, or an empty string.
  std::string check_invariants();

  // Calls `action` for each arena, with its lock held.
  template <typename Action>
  void for_each(Action action) {
    const std::lock_guard guard(mutex_);
    visit(arenas_, action);
  }
  // The same for the stream's arenas in families that lend their free memory (ArenaFamily::lends), until `action`
  // returns true.
  template <typename Action>
  void for_lending(StreamId stream, Action action) {
    const std::lock_guard guard(mutex_);
    for (const auto& arena : arenas_) {
      if (!arena->family.lends || arena->family.retired || arena->stream() != stream) continue;
      const ArenaGuard arena_guard(arena->mutex);
      if (action(*arena)) return;
    }
  }
  // A number that tells families of one name apart; 0: the default family. Expects that for_each() calls it, so that
  // the list does not change.
  std::size_t number_of(const ArenaFamily& family) const noexcept;

  void lock_for_fork();
  void unlock_after_fork() noexcept;

 private:
  // Each of these arenas under its lock, one after the other. That is no block's way, and not counted. Expects that the
  // mutex is held.
  template <typename Arenas, typename Action>
  static void visit(const Arenas& arenas, Action action) {
    for (const auto& arena : arenas) {
      const std::lock_guard guard(arena->mutex.uncounted());
      action(*arena);
    }
  }
  void forget_retired() noexcept;
  template <typename NeedOf>
  std::size_t sum_of_needs(NeedOf need_of) noexcept;
  std::size_t above_floor(const ArenaFamily& family) const noexcept;

  CachingAllocator& owner_;
  PhysicalMemory& memory_;
  Ledger& ledger_;
  StreamClocks& clocks_;
  const Options& options_;
  std::mutex mutex_;  // guards what follows; held by whoever holds several arenas, so their order does not matter
  // Also those of retired families whose memory would not go back yet. The first of either is the default.
  std::vector<std::unique_ptr<ArenaFamily>> families_;
  std::vector<std::unique_ptr<Arena>> arenas_;
  FreeRangeStats retired_ranges_;        // of arenas that are gone
  CountedMutex::Counts retired_locks_;   // likewise
  std::atomic<bool> has_others_{false};  // beside the default family's first
  ArenaFamily* const default_family_;
};

}  // namespace mempool
