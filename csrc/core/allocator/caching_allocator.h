// The allocator of one device: rounds, charges, takes blocks from thread caches and arenas, and on a miss makes room
// before it refuses. Thread-safe.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/errors.h"
#include "common/options.h"
#include "core/accounts/demand_window.h"
#include "core/accounts/ledger.h"
#include "core/allocator/deferred_frees.h"
#include "core/allocator/hooks.h"
#include "core/observe/observers.h"
#include "core/observe/snapshot.h"
#include "core/pages/arena.h"
#include "core/physical_memory.h"
#include "core/threads/thread_registry.h"

namespace mempool {

class CachingAllocator final : private ThreadCache::Owner {
 public:
  CachingAllocator(std::string device, std::unique_ptr<PhysicalMemory> memory, const Options& options);
  CachingAllocator(const CachingAllocator&) = delete;
  CachingAllocator& operator=(const CachingAllocator&) = delete;
  // For tests: the allocators of a process are immortal. Precondition: no block is live, no other thread uses it.
  ~CachingAllocator();

  // A block of at least `bytes`, aligned to at least 64; nullptr for 0 bytes. Charged to the calling thread's pool. It
  // is to be used by work on `stream`, in order; for other streams see add_use(). Throws OutOfMemory, or
  // PoolClosedError when that pool is closed.
  void* allocate(std::size_t bytes, StreamId stream = 0);
  // The same out of a family of its own; see open_family().
  void* allocate_from(ArenaFamily& family, std::size_t bytes, StreamId stream);
  // False, with nothing done, when `address` is a live block of no allocator in this process. nullptr is fine.
  // Precondition: it is of no other allocator.
  bool deallocate(void* address) noexcept;
  // Work on `stream` uses the live block, too: once it is freed, its memory serves nobody before what is in that stream
  // at the time is done. False when the address is no live block's. Throws std::bad_alloc.
  bool add_use(const void* address, StreamId stream);
  // The same for a stream of another device, by that device's clock.
  bool add_use(const void* address, StreamClock& clock);
  StreamClock& clock_of(StreamId stream) { return clocks_.of(stream); }
  // Waits for the blocks that other streams keep, and takes them back.
  void settle() noexcept {
    while (await_other_streams(0)) continue;
  }
  // Whether add_use() was called for the live block: then its free is not over when deallocate() returns.
  static bool is_used_elsewhere(const void* address) noexcept;
  // Called for each block that had to wait for other streams, when that is over and before anybody gets it. It must not
  // call the allocator: what collects such blocks is locked.
  using CompletionHook = void (*)(CachingAllocator&, void* address, std::size_t rounded, StreamId stream,
                                  const ArenaFamily& family) noexcept;
  void set_completion_hook(CompletionHook hook) noexcept { completion_hook_.store(hook); }
  // Bytes charged for a live block; 0 when the address is not one.
  static std::size_t block_bytes(const void* address) noexcept;
  // Whose block begins at the address; nullptr: nobody's.
  static CachingAllocator* owner_of(const void* address) noexcept;
  // Whether a live block begins at the address that is charged to this very pool, not to a child. Precondition: nobody
  // frees it meanwhile.
  bool is_charged(const Account& pool, const void* address) const noexcept;
  // The contiguous backed range around a block, and which stream it belongs to.
  struct Range {
    void* address = nullptr;
    std::size_t bytes = 0;
    StreamId stream = 0;
    const ArenaFamily* family = nullptr;
  };
  static Range range_of(const void* block) noexcept;

  // ---- pools
  // `isolated` gives the pool an arena of its own. Children share the arena of their parent unless isolated too.
  Account* open_pool(std::string name, Account* parent, bool isolated, std::size_t limit, std::size_t soft_limit);
  // No new blocks from now on; live ones stay valid and are charged until they die.
  void close_pool(Account& pool) noexcept;
  // The last handle is gone. Closes the pool; its record goes with its last block.
  void drop_pool(Account& pool) noexcept;
  // The calling thread's new blocks are charged to `pool` (nullptr: the root) until the entry is left. Nests. A closed
  // pool is let in: the allocations that it then refuses say why. Throws std::bad_alloc.
  void enter_pool(PoolEntry& entry, Account* pool);
  // From any thread: once this returns no new block is charged because of the entry. False: it was left before, or its
  // thread has ended.
  bool leave_pool(PoolEntry& entry) noexcept;
  // The calling thread's entries, the innermost first. `visit` may leave the entry that it is given, no other.
  template <typename Visit>
  void for_each_entry(Visit visit) {
    ThreadCache* const mine = ThreadRegistry::find(slot_);
    PoolEntry* next = mine != nullptr ? mine->pools.top() : nullptr;
    while (PoolEntry* const entry = next) {
      next = PoolStack::below(*entry);
      visit(*entry);
    }
  }
  // Physical bytes of the pool's own arena; of a pool that is not isolated, what it is charged with.
  std::size_t pool_held_bytes(const Account& pool);
  std::size_t trim_pool(Account& pool) noexcept;
  // Throws ConfigError when more is in use.
  void set_pool_limit(Account& pool, std::size_t limit);

  // ---- families: arenas apart from all others, for captured graphs
  // In one that is `fixed` no memory ever moves, goes to others or back to the backend before it is closed, free or
  // not: a captured graph writes there whenever it is replayed. It takes what is idle elsewhere.
  ArenaFamily& open_family(std::string name, bool fixed);
  // Nobody allocates from it any more. Its arenas go when their last block does, their free memory at once.
  void close_family(ArenaFamily& family) noexcept;
  std::size_t trim_family(ArenaFamily& family) noexcept;
  std::size_t family_held_bytes(const ArenaFamily& family);
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

  // ---- device
  void set_limit(std::size_t limit);                // trims first; throws ConfigError when more is held even so
  void set_soft_limit(std::size_t limit) noexcept;  // trims when more is held
  // Recalls thread caches and gives free memory back until at most `target_bytes` are held. Returns the bytes given.
  // `may_wait`: for work on the device that still uses it, blocks that wait for other streams included.
  std::size_t trim(std::size_t target_bytes, bool may_wait = true) noexcept;

  // Gives back what demand has not come near for Options::decay_ms, as seen at the moment `now_ms` of a clock of the
  // caller's, which calls it every decay_tick_ms(), from one thread at a time. Returns the bytes given.
  std::size_t decay(std::int64_t now_ms) noexcept;
  std::int64_t decay_tick_ms() const noexcept;
  // Called whenever memory was taken from the backend, with no lock held.
  void set_growth_hook(void (*hook)(CachingAllocator&) noexcept) noexcept { growth_hook_.store(hook); }

  // Makes all memory usable anew: whom the backend lets in has changed.
  bool open_again() noexcept;

  // Moves the free memory of each arena together, so that it can serve one large block. Returns what that did.
  Gathering defragment() noexcept;
  // The largest contiguous free range of any arena.
  std::size_t largest_free() noexcept;

  // ---- sleep, of isolated pools: their memory goes back, their addresses stay, an access faults.
  // `keep`: contents are saved outside of the memory, else they are lost. Throws ConfigError for a pool that is not
  // isolated, PoolStateError when it could not be done; the pool is then awake.
  void sleep_pool(Account& pool, bool keep);
  // Throws OutOfMemory when the memory cannot be had again under the limits; the pool is then asleep and whole.
  void wake_pool(Account& pool);
  bool pool_asleep(const Account& pool);

  // ---- reading
  DeviceStats stats();
  void reset_peaks() { reset(Stat::reset_peak); }
  void reset_sums() { reset(Stat::reset_sum); }
  Snapshot snapshot();  // of one moment; whoever allocates waits for it
  // The first broken invariant, or an empty string. check_invariants() also compares sums and wants every other thread
  // at rest.
  std::string check_structure();
  std::string check_invariants();

  const std::string& device() const noexcept { return device_; }
  const Options& options() const noexcept { return options_; }
  Ledger& ledger() noexcept { return ledger_; }
  AccountRegistry& accounts() noexcept { return accounts_; }
  Observers& observers() noexcept { return observers_; }

  // `hooks` must outlive its installation; nullptr removes.
  static void set_hooks(const Hooks* hooks) noexcept;

  // ---- fork: every lock is taken, so that the child finds whole structures. Each step for all allocators of the
  // process before the next one; the mutex of the ThreadRegistry is held from the second to the last.
  void prepare_fork();
  void lock_for_fork();
  void after_fork(bool in_child) noexcept;             // first of all there
  std::size_t slot() const noexcept { return slot_; }  // in the ThreadRegistry

 private:
  void take_back(ThreadCache& ended) noexcept override;
  class Lenders;
  struct Request {
    BlockSize size;
    Account* account;
    ThreadCache* cache;
    StreamId stream;
    ArenaFamily* family;
    Arena* arena = nullptr;
    bool may_commit = true;           // else only what is free may move: the backend has just refused
    bool may_wait = false;            // for work on other streams
    Refusal refusal = Refusal::none;  // the last that was given
    std::uint32_t account_id() const { return account != nullptr ? account->id : 0; }
  };
  // How hard obtain() was tried already.
  enum class Effort : std::uint8_t { none, recalled, awaited, waited, released, pressed };

  ThreadCache* cache() noexcept {
    ThreadCache* const found = ThreadRegistry::find(slot_);
    return found != nullptr ? found : make_cache();
  }
  ThreadCache* make_cache() noexcept;

  void* allocate_span(ThreadCache& mine, std::size_t bytes, StreamId stream);
  void* allocate_slow(std::size_t bytes, StreamId stream, ArenaFamily* family);
  // nullptr without memory for its record.
  Arena* arena_of(ArenaFamily& family, StreamId stream) noexcept;
  void serve_stream(ThreadCache& mine, const Request& request) noexcept;
  // Frees blocks whose other streams have caught up. The first leaves it to another thread that is at it; the second
  // waits for that thread, and all of them are free then.
  void collect() noexcept;
  void collect_all() noexcept;
  void give_back_collected() noexcept;
  void give_back(Span* span, const SmallBlock& block) noexcept;
  void defer(Span* span, const SmallBlock& block, const BlockSize& size, std::uint32_t account,
             ThreadCache* mine) noexcept;
  // Both are called with the cache's lock held. The first returns `address`, the second true.
  [[gnu::noinline]] void* settle_and_unlock(ThreadCache& mine, bool is_small, void* address) noexcept;
  [[gnu::noinline]] bool fold_and_unlock(ThreadCache& mine) noexcept;
  static std::uint32_t capture_stack();
  void reset(void (*action)(Stat&));
  void make_room_for_snapshot(Snapshot& out);
  // What keeps a request's pool alive while none of its bytes are reserved.
  class Keep;
  Ledger::Charge reserve_current(Request& request, Keep& keep);
  void insist(const Request& request, Ledger::Charge result);
  void let_go(const Request& request, const Ledger::Charge& charge, Keep& keep);
  void confirm(const Request& request);
  Ledger::Charge charge(const Request& request) noexcept;
  void uncharge(std::uint32_t account_id, const BlockSize& size, ThreadCache* cache, bool waits) noexcept;
  void* obtain(const Request& request, Refusal& why) noexcept;
  bool is_hopeless(const Request& request, Refusal& why) const noexcept;
  bool may_fit(const Request& request) noexcept;
  void* take(const Request& request, bool may_grow, Refusal& why) noexcept;
  void* take_cached(const Request& request, bool may_grow, Refusal& why) noexcept;
  // Whether a block that is freed may wait in this thread's cache (nullptr: it has none).
  bool may_keep(const Span* span, const ThreadCache* mine) const noexcept {
    if (mine == nullptr || !mine->serves(span->segment->arena)) return false;
    if (span->state == Span::State::slab) return true;
    // Above the soft limit free memory is not kept.
    return (span->bytes <= kMediumMax || span->home == mine) && !ledger_.above_soft_limit();
  }
  // The tag of the block that begins at the address; nullptr: none does. `span`: what holds it.
  static BlockTag* find_tag(const void* address, Span*& span) noexcept;
  bool await_other_streams(std::size_t bytes) noexcept;
  void make_room(Request& request, Refusal why, Effort& effort, PressureOutcome& outcome);
  bool free_span(Span* span, void* address) noexcept;
  bool free_slow(Span* span, SmallBlock block) noexcept;
  void after_growth(const Request& request);
  void press(const Request& request, const Account* refuser, std::size_t needed, bool failing,
             PressureOutcome& outcome);
  [[noreturn]] void refuse(const Request& request, OomInfo info, const Account* refuser,
                           const PressureOutcome& outcome);

  void recall() noexcept;
  std::size_t recall_unused(std::int64_t now_ms, std::size_t unused) noexcept;
  void recall_for_growth(ThreadCache* mine) noexcept;
  void fold_for_peak(ThreadCache* mine) noexcept;
  std::size_t release(std::size_t bytes, bool may_wait) noexcept;
  void retire(Account* account) noexcept;
  void end(const AccountRegistry::Ended& ended) noexcept;
  void clear_out(Account& idle) noexcept;
  void clear_out_below(const Account& closed) noexcept;
  void forget_retired() noexcept;
  std::vector<Arena*> arenas_of(const ArenaFamily& family);
  ArenaFamily& add_family(std::string name, ArenaFamily::Kind kind);
  // Each arena under its lock, one after the other; then `last`, while still no arena can come or go.
  template <typename Action>
  void for_each_arena(Action action) {
    for_each_arena(action, [] {});
  }
  template <typename Action, typename Last>
  void for_each_arena(Action action, Last last) {
    const std::lock_guard guard(arenas_mutex_);
    const auto visit = [&action](Arena& arena) {
      const std::lock_guard arena_guard(arena.mutex);
      action(arena);
    };
    for (const auto& arena : arenas_) visit(*arena);
    last();
  }
  ArenaFamily& family_of(const Account* account) noexcept {
    return account != nullptr ? *account->family : *default_family_;
  }

  const std::string device_;
  const Options options_;
  const std::unique_ptr<PhysicalMemory> memory_;
  AccountRegistry accounts_;
  Ledger ledger_{accounts_};
  Observers observers_;
  const std::size_t slot_;
  StreamClocks clocks_;
  DeferredFrees deferred_;
  std::mutex collecting_;  // held until what was collected is free; before all other locks but that of observers_
  // Also those of retired families whose memory would not go back yet. The first of either is the default.
  std::vector<std::unique_ptr<ArenaFamily>> families_;
  std::vector<std::unique_ptr<Arena>> arenas_;
  ArenaFamily* const default_family_;
  std::atomic<void (*)(CachingAllocator&) noexcept> growth_hook_{nullptr};
  std::atomic<CompletionHook> completion_hook_{nullptr};
  std::atomic<UnpinHook> unpin_hook_{nullptr};
  std::mutex demand_mutex_;  // the last of all
  DemandWindow demand_;
  static constexpr std::int64_t kNotUnused = INT64_MIN;
  std::int64_t unused_since_ms_ =
      kNotUnused;                  // blocks wait in caches, more than a handle of them; decay() alone uses it
  FreeRangeStats retired_ranges_;  // of arenas that are gone
  std::mutex arenas_mutex_;        // after the caches' locks, before the arenas'
  std::atomic<bool> has_more_arenas_{false};  // than one
};

}  // namespace mempool
