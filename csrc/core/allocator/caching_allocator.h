// The allocator of one device: hands out blocks and takes them back, and is the face of all parts behind that.
//
// A cached block's way is in caching_allocator.cpp; a request that its thread's cache cannot serve is an Allocation.
// What the parts are, and the order of their locks, device_parts.h says. Thread-safe.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "common/errors.h"
#include "common/options.h"
#include "core/allocator/device_parts.h"
#include "core/allocator/hooks.h"
#include "core/observe/snapshot.h"

namespace mempool {

class CachingAllocator final {
 public:
  CachingAllocator(std::string device, std::unique_ptr<PhysicalMemory> memory, const Options& options);
  CachingAllocator(const CachingAllocator&) = delete;
  CachingAllocator& operator=(const CachingAllocator&) = delete;
  // For tests: the allocators of a process are immortal. Expects that no block is live, and no other thread uses it.
  ~CachingAllocator();

  // ---- blocks
  // A block of at least `bytes`, aligned to at least 64; nullptr for 0 bytes. Charged to the calling thread's pool. It
  // is to be used by work on `stream`, in order; for other streams see add_use(). Throws OutOfMemory, or
  // PoolClosedError when that pool is closed.
  void* allocate(std::size_t bytes, StreamId stream = 0);
  // The same out of a family of its own; see ArenaSet::open().
  void* allocate_from(ArenaFamily& family, std::size_t bytes, StreamId stream);
  // False, with nothing done, when `address` is a live block of no allocator in this process. nullptr is fine.
  // Expects that it is of no other allocator.
  bool deallocate(void* address) noexcept;
  // Work on `stream` uses the live block, too: once it is freed, its memory serves no other request before what is in
  // that stream at the time is done. False when the address is no live block's. Throws std::bad_alloc.
  bool add_use(const void* address, StreamId stream) { return add_use(address, clock_of(stream)); }
  // The same for a stream of another device, by that device's clock.
  bool add_use(const void* address, StreamClock& clock);
  StreamClock& clock_of(StreamId stream) { return parts_.clocks.of(stream); }
  // Waits for the blocks that other streams keep, and takes them back.
  void settle() noexcept { parts_.collector.await_all(); }
  // Whether a live block begins at the address that is charged to this very pool, not to a child. Expects that it is
  // not freed meanwhile.
  bool is_charged(const Account& pool, const void* address) const noexcept;

  // ---- places
  // Every live block, in address order within each arena.
  struct PlacedBlock {
    void* address;
    std::size_t rounded;
    std::size_t requested;
    StreamId stream;
    std::uintptr_t slab;  // where its slab begins; 0: it is in none
  };
  std::vector<PlacedBlock> live_blocks(const ArenaFamily& family);
  // A block at exactly that place, charged to the device alone. False: something live is there, or no memory.
  bool allocate_at(ArenaFamily& family, const PlacedBlock& place);
  // The same in the default family, for a request that is rounded to whole pages.
  bool allocate_exactly(std::size_t bytes, void* address, StreamId stream);
  // The handles that a live block lies in, in address order: other processes get them. Its pool does not sleep before
  // the block is freed, or unpin() called for it; then the hook is told. Empty when the address is no block's, or its
  // pool sleeps. Throws std::bad_alloc.
  std::vector<Handle> pin_handles(const void* block);
  void unpin(void* block) noexcept;
  using UnpinHook = void (*)(CachingAllocator&, void* block) noexcept;
  void set_unpin_hook(UnpinHook hook) noexcept { unpin_hook_.store(hook); }

  // ---- limits, and memory that goes back
  void set_limit(std::size_t limit);                // trims first; throws ConfigError when more is held even so
  void set_soft_limit(std::size_t limit) noexcept;  // trims when more is held
  // Recalls thread caches and gives free memory back until at most `target_bytes` are held. Returns the bytes given.
  // `may_wait`: for work on the device that still uses it, blocks that wait for other streams included.
  std::size_t trim(std::size_t target_bytes, bool may_wait = true) noexcept {
    return parts_.reclaimer.trim(target_bytes, may_wait);
  }
  std::size_t trim_pool(Account& pool) noexcept;
  std::size_t trim_family(ArenaFamily& family) noexcept { return parts_.reclaimer.trim(family); }
  // Gives back what demand has not come near for Options::decay_ms, as seen at the moment `now_ms` of a clock of the
  // caller's, which calls it every decay_tick_ms(), from one thread at a time. Returns the bytes given.
  std::size_t decay(std::int64_t now_ms) noexcept { return parts_.reclaimer.decay(now_ms); }
  std::int64_t decay_tick_ms() const noexcept { return parts_.reclaimer.decay_tick_ms(); }
  // Holds at least `bytes` for the pool from now on (nullptr: the root and all that share its memory): what is missing
  // is taken at once, and backed by the system. It neither decays nor goes to others; a trim leaves it. 0: none. Throws
  // ConfigError for a pool that is not isolated, PoolClosedError, PoolAsleepError, and OutOfMemory, with nothing
  // changed.
  void reserve(Account* pool, std::size_t bytes);
  std::size_t reserved_for(Account* pool) noexcept { return parts_.arenas.family_of(pool).floor.load(); }
  // Called whenever memory was taken from the backend, a pool opened or a request refused, with no lock held.
  void set_growth_hook(void (*hook)(CachingAllocator&) noexcept) noexcept { parts_.growth_hook.store(hook); }
  void tell_growth() { parts_.tell_growth(); }
  // Called, with no lock held, for a request that would be refused: true when it has freed memory.
  void set_relief_hook(bool (*hook)(CachingAllocator&) noexcept) noexcept { parts_.relief_hook.store(hook); }
  // Called, with no lock held, before a request is refused, a limit set or outside_bytes() told: the bytes that another
  // allocator of this process holds on the device, which count in its limit.
  void set_outside_hook(std::size_t (*hook)(CachingAllocator&) noexcept) noexcept { parts_.outside_hook.store(hook); }
  std::size_t outside_bytes() noexcept;  // as of now
  // Calls the pressure callbacks for the device, from a thread that does not allocate: memory is short outside of it.
  void press(std::size_t needed) noexcept;
  // Moves the free memory of each arena together, so that it can serve one large block. Returns what that did.
  Gathering defragment() noexcept { return parts_.reclaimer.gather(); }

  // ---- sleep, of isolated pools: their memory goes back, their addresses stay, an access faults.
  // `keep`: contents are saved outside of the memory, else they are lost. Throws ConfigError for a pool that is not
  // isolated, PoolStateError when it could not be done; the pool is then awake.
  void sleep_pool(Account& pool, bool keep);
  // Throws OutOfMemory when the memory cannot be had again under the limits; the pool is then asleep and whole.
  void wake_pool(Account& pool);
  bool pool_asleep(const Account& pool);

  // ---- reading
  DeviceStats stats();
  // In a time that does not depend on how many pools there are. `own` as for metrics_of().
  Metrics metrics(bool own);
  void reset_peaks() { reset(Stat::reset_peak); }
  void reset_sums() { reset(Stat::reset_sum); }
  // Contiguous backed ranges, [start, bytes), as they were when each arena was looked at. Throws std::bad_alloc.
  std::vector<std::pair<std::uintptr_t, std::size_t>> backed_ranges();
  Snapshot snapshot();  // of one moment; whoever allocates waits for it
  // The first broken invariant, or an empty string. Beside those of all arenas it compares sums, and so expects that
  // every other thread is at rest.
  std::string check_invariants();

  const std::string& device() const noexcept { return parts_.device; }
  const Options& options() const noexcept { return parts_.options; }
  Ledger& ledger() noexcept { return parts_.ledger; }
  AccountRegistry& accounts() noexcept { return parts_.accounts; }
  Pools& pools() noexcept { return parts_.pools; }
  ArenaSet& arenas() noexcept { return parts_.arenas; }
  Observers& observers() noexcept { return parts_.observers; }

  // ---- fork: every lock is taken, so that the child finds whole structures. Each step for all allocators of the
  // process before the next one; the mutex of the ThreadRegistry is held from the second to the last.
  void prepare_fork();
  void lock_for_fork();
  void after_fork(bool in_child) noexcept;                            // first of all there
  std::size_t slot() const noexcept { return parts_.caches.slot(); }  // in the ThreadRegistry

 private:
  struct Reservation {
    std::size_t bytes = 0;  // that were taken for it
    bool is_whole = false;
    Refusal why = Refusal::none;  // it is not
  };
  Reservation hold_at_least(Arena& arena, std::size_t wanted) noexcept;
  static bool is_for_cache(const ThreadCache* mine, StreamId stream) noexcept;
  [[gnu::always_inline]] void* allocate_cached(ThreadCache& mine, std::size_t bytes, StreamId stream);
  [[gnu::noinline]] void* allocate_after_detour(std::size_t bytes, StreamId stream, ThreadCache* mine);
  void collect_for(std::size_t bytes, ThreadCache* mine) noexcept;
  void* allocate_span(ThreadCache& mine, std::size_t bytes, StreamId stream);
  void* allocate_slow(std::size_t bytes, StreamId stream, ArenaFamily* family);
  bool free_span(Span* span, void* address) noexcept;
  bool free_slow(Span* span, SmallBlock block) noexcept;
  bool may_keep(const Span* span, const ThreadCache* mine) const noexcept;
  void take_picture(Snapshot& out);
  void reset(void (*action)(Stat&));

  DeviceParts parts_;
  std::mutex reserving_;  // held by reserve(), before every other lock; a forked child has a new one
  std::atomic<UnpinHook> unpin_hook_{nullptr};
};

}  // namespace mempool
