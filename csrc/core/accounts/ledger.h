// Charges blocks to pools and counts the memory of one device: its totals, and the physical memory held.
// AccountRegistry keeps the pools themselves.
//
// How exact figures and a fast path go together:
//   - The root pool has no limit on allocated bytes, so its blocks are counted in the Shards of a thread, which only
//     that thread's lock guards. Every reading folds the shards into the totals first: current values are exact.
//   - Peaks: a thread may be ahead of the totals by what it has leased from the room between them and their peaks. As
//     totals and leases together never pass a peak, nothing that happens inside a lease can be a new peak, and only
//     sums need counting. When that room is used up, the leases of all threads are folded back before the next block is
//     counted. After that, threads that free many blocks give up a part of their leases, so that it happens rarely.
//   - A thread that frees what the totals have already, its own blocks or another thread's, is behind until it is
//     folded, by at most kFoldBytes and kFoldBlocks of small and of large blocks each. Meanwhile the totals are too
//     high by that much for each of these threads, and so may be a peak: never too low.
//   - Every other pool may have a limit, so its blocks are counted in its Account. The registry's spin lock is held for
//     the whole chain of parents: a check and all its charges are one step, a limit is never passed by a byte, and the
//     half-finished charge of one thread never makes another thread's request fail.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "common/bytes.h"
#include "common/spin_lock.h"
#include "core/accounts/account_registry.h"
#include "core/accounts/block_size.h"
#include "core/accounts/budget.h"
#include "core/accounts/metrics.h"
#include "core/accounts/shards.h"
#include "core/accounts/stats.h"

namespace mempool {

class Ledger {
 public:
  explicit Ledger(AccountRegistry& accounts) : accounts_(accounts), lock_(accounts.lock()) {}
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  struct Charge {
    enum class Outcome : std::uint8_t { charged, refused, closed, unsettled } outcome = Outcome::charged;
    // refused, closed: the pool that said no (it is in the chain, so it lives as long as the pool that was charged),
    // and its figures at that moment. charged: the pool whose soft limit was crossed.
    const Account* pool = nullptr;
    std::size_t allocated = 0;
    std::size_t limit = kNoLimit;
    std::size_t soft_over = 0;  // charged: bytes above a soft limit that was crossed from below
  };

  // A block of a pool is charged in two steps, so that one which cannot be had leaves no trace in any figure:
  // reserve() holds its place under the limits of the pool and its parents; then confirm() counts it, or cancel() lets
  // the place go. The root pool (nullptr) has no limit on allocated bytes and needs confirm() alone.
  Charge reserve(Account* account, std::size_t rounded);
  void cancel(Account* account, std::size_t rounded);
  // `shards`: the calling thread's, whose lock it holds; nullptr for a thread that has none.
  // The outcome is `unsettled`, with nothing changed, when this could be a new peak and other threads have leases: fold
  // all shards first, then it is `charged`. `force`: never so.
  Charge confirm(Account* account, BlockSize size, Shards* shards, bool force);
  // `waits`: the block stays active, for other streams may use it still, until end_waiting().
  AccountRegistry::Ended uncharge(std::uint32_t account_id, BlockSize size, Shards* shards, bool waits = false);
  // Shards that are ahead get a longer lease or are folded. False when other threads' leases stand against that: all
  // threads' must be folded, these last.
  bool settle(Shards& shards, bool is_small);
  // Shards that are behind are folded, or give up what they do not need of their lease now: for some time after threads
  // have stood in each other's way.
  void ease(Shards& shards, bool is_small);
  void fold(Shards& shards);
  void forget(Shards& shards);  // the same, of a thread that ends
  // After all shards were folded for the sake of a peak: for some time no thread gets a lease, so that threads at their
  // common peak share a lock and do not take each other's leases away in turn.
  void suspend_leases();

  // A block that was uncharged waits for other streams no longer.
  void end_waiting(BlockSize size);
  std::int64_t waiting_bytes() const;

  // Held bytes: counted before memory is taken, unless the device's limit would be passed, or the budget's.
  enum class Hold : std::uint8_t { counted, over_limit, over_budget };
  Hold try_hold(std::size_t bytes);
  void unhold(std::size_t bytes);
  // What another allocator of this process holds on the device: it counts in the limit and, as far as there is room, in
  // the budget. Of the figures of this ledger it is in none.
  void set_outside(std::size_t bytes);
  std::size_t outside() const;
  // What is held from now on counts in `budget` as well, and what is held already. False, and nothing changed, when
  // that is more than it has room for. Once; `budget` is immortal.
  bool join(Budget& budget);
  Budget* budget() const { return budget_.load(std::memory_order_acquire); }
  // In the child of a fork, with both locks held: what is held and alive now stays counted for the parent alone,
  // outside included. Expects that all shards were folded before the fork.
  void after_fork_in_child() noexcept;
  // The most that can be held, and what of that is not held yet, by the device's limit and the budget's.
  std::size_t most_held() const;
  std::size_t room() const;
  // What one family of arenas holds of them: changed by those who get it here, together with the totals, and read and
  // reset here alone.
  using Reserved = ByPool<Stat>;
  // After a commit that try_hold() allowed; `shared_bytes` of them are of the small pool.
  void count_commit(std::size_t bytes, std::size_t shared_bytes, Reserved& of);
  // Includes unhold(). `generation`: of forks, in which it was committed.
  void count_decommit(std::size_t bytes, std::size_t shared_bytes, std::uint32_t generation, Reserved& of);
  void count_move(std::size_t bytes, Reserved& from, Reserved& to);
  void share(std::int64_t bytes, Reserved& of);  // moves held bytes into (or out of) the small pool
  void count_ranges(int change);                 // contiguous backed ranges that came or went
  Reserved read(const Reserved& reserved) const;
  void reset(Reserved& reserved, void (*action)(Stat&));
  // True once after held bytes grew to a figure above the device's soft limit.
  bool take_soft_crossing();
  // Whether held bytes are above the soft limit. Takes no lock.
  bool above_soft_limit() const { return above_soft_.load(std::memory_order_relaxed); }
  // True when held bytes are above the soft limit and this is the first question since they, or the allocated ones,
  // were below it: callbacks run once for each time that the limit is crossed.
  bool take_soft_alarm();

  // What the totals say now. `allocations` is exact for a thread that has folded its shards and is alone.
  struct Moment {
    std::int64_t allocations = 0;  // blocks handed out so far; never reset
    std::size_t peak_allocated = 0;
    std::size_t held = 0;
  };
  Moment moment() const;
  std::size_t held() const;
  std::size_t limit() const;
  std::size_t soft_limit() const;
  // False, and nothing changed, when more than `limit` is held, outside included.
  bool set_limit(std::size_t limit);
  // Also below what is held: then nothing more is, until memory went back.
  void force_limit(std::size_t limit);
  void set_soft_limit(std::size_t limit);
  // Comes before lock(). Held while a budget is asked, which may wait for another process.
  std::mutex& lock_for_fork() noexcept { return budget_turn_; }

  DeviceStats read_stats() const;
  DeviceMetrics read_metrics(bool own) const;  // as metrics_of() has it
  std::size_t inherited_held() const;          // what was held when this process was forked
  void reset(void (*action)(Stat&));
  // Both count for the device, for the pool that asked, and for the pool whose limit refused. Either may be nullptr.
  void count_oom(Account* asker, const Account* refuser, OomReason reason);
  void count_pressure_call(Account* asker, const Account* refuser);
  void count_retry();
  void count_decay(std::size_t bytes);

 private:
  template <typename Action>
  void for_both(Account* asker, const Account* refuser, Action action);
  void fold_locked(Shards& shards);
  bool fits_locked(std::size_t bytes) const {
    const std::size_t counted = held_ + outside_;
    return counted <= limit_ && bytes <= limit_ - counted;
  }
  void hold_locked(std::size_t bytes);
  Budget* unhold_locked(std::size_t bytes);  // returns the budget, which is to be told without a lock
  Amounts room_below_peaks(bool is_small, const Amounts& returned) const;
  Amounts lease_within(const Amounts& room, const Shard& shard, bool is_small) const;
  void set_lease(Shard& shard, bool is_small, const Amounts& lease);
  Amounts leased() const { return leased_small_.plus(leased_large_, 1); }
  Amounts& leased_of(bool is_small) { return is_small ? leased_small_ : leased_large_; }
  std::int64_t& leasers_of(bool is_small) { return is_small ? leasers_small_ : leasers_large_; }
  void rearm_soft() {
    if (const bool above = held_ > soft_limit_; above != above_soft_.load(std::memory_order_relaxed))
      above_soft_.store(above, std::memory_order_relaxed);
    // Between the folds of two threads the totals may stand below zero.
    const std::int64_t allocated = std::max<std::int64_t>(stats_.blocks.all.bytes.current, 0);
    if (held_ <= soft_limit_ || static_cast<std::size_t>(allocated) <= soft_limit_) {
      soft_armed_ = true;
    }
  }

  AccountRegistry& accounts_;
  SpinLock& lock_;  // the registry's
  DeviceStats stats_;
  DeviceStats inherited_;  // from the process that this one was forked from
  Amounts leased_small_;
  Amounts leased_large_;
  std::int64_t leasers_small_ = 0;  // threads that live and have a lease, or had one
  std::int64_t leasers_large_ = 0;
  std::int64_t forgotten_allocations_ = 0;  // counted before the sums were reset
  int lease_refusals_ = 0;                  // still to come, after suspend_leases()
  std::atomic<int> eases_{0};               // likewise; written with the lock
  std::size_t held_ = 0;
  std::size_t outside_ = 0;
  std::size_t outside_in_budget_ = 0;     // guarded by budget_turn_
  std::mutex budget_turn_;                // whoever asks the budget: what it grants is then counted here without a gap
  std::atomic<Budget*> budget_{nullptr};  // written with both locks
  std::uint32_t counted_since_ = 0;       // memory of earlier generations of forks does not count in the budget
  std::size_t limit_ = kNoLimit;
  std::size_t soft_limit_ = kNoLimit;
  bool soft_armed_ = true;
  alignas(128) std::atomic<bool> above_soft_{false};
  std::atomic<bool> soft_crossed_{false};  // read without the lock on the way of every large block
};

}  // namespace mempool
