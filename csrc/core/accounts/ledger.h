// Who uses how much. One ledger for each device: the totals of its root pool, the accounts of all other pools, and the
// physical memory held.
//
// How exact figures and a fast path go together:
//   - The root pool has no limit on allocated bytes, so its blocks are counted in the Shards of a thread, which only
//     that thread's lock guards. Every reading folds the shards into the totals first: current values are exact.
//   - Peaks: a thread may be ahead of the totals by what it has leased from the room between them and their peaks. As
//     totals and leases together never pass a peak, nothing that happens inside a lease can be a new peak, and only
//     sums need counting. When that room is used up, the leases of all threads are folded back before the next block is
//     counted.
//   - A thread that frees what another one allocated is behind until it is folded, by at most kFoldBytes and
//     kFoldBlocks. Meanwhile the totals are too high by that much for each such thread, and so may be a peak: never too
//     low, and exact when each thread frees what it allocated.
//   - Every other pool may have a limit, so its blocks are counted here, under one spin lock for the whole chain of
//     parents: a check and all its charges are one step, a limit is never passed by a byte, and no half-made charge of
//     one thread can refuse another.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/bytes.h"
#include "common/spin_lock.h"
#include "core/accounts/stats.h"

namespace mempool {

class ArenaFamily;

struct Account {
  std::uint32_t id = 0;
  std::string name;
  Account* parent = nullptr;      // nullptr: the root pool, which is no Account
  ArenaFamily* family = nullptr;  // where blocks come from; shared with the parent unless `isolated`
  bool isolated = false;
  std::size_t limit = kNoLimit;
  std::size_t soft_limit = kNoLimit;
  bool soft_armed = true;      // fires once for each crossing from below
  bool closed = false;         // no new blocks
  bool referenced = true;      // a handle of the user still exists
  std::uint32_t children = 0;  // accounts whose parent this is; they keep it alive
  std::uint32_t users = 0;     // threads whose new blocks are charged to it; they keep it alive
  std::size_t pending = 0;     // bytes of blocks that are being sought: they count toward the limit and nowhere else
  BlockStats blocks;
  std::int64_t own_blocks = 0;  // of an isolated one: those in its arena, without the isolated ones below
  std::int64_t ooms = 0;
  std::int64_t pressure_calls = 0;
};

class Ledger {
 public:
  // A thread that is this far behind the totals is folded.
  static constexpr std::int64_t kFoldBytes = 256 << 10;  // allocated, or requested
  static constexpr std::int64_t kFoldBlocks = 4096;

  // Three figures that always change together.
  struct Amounts {
    std::int64_t count = 0;
    std::int64_t bytes = 0;
    std::int64_t requested = 0;

    void add(const Amounts& other) {
      count += other.count;
      bytes += other.bytes;
      requested += other.requested;
    }
    void subtract(const Amounts& other) {
      count -= other.count;
      bytes -= other.bytes;
      requested -= other.requested;
    }
    Amounts plus(const Amounts& other, std::int64_t times) const {
      return {count + times * other.count, bytes + times * other.bytes, requested + times * other.requested};
    }
    bool exceeds(const Amounts& other) const {
      return count > other.count || bytes > other.bytes || requested > other.requested;
    }
    Amounts at_least_zero() const {
      return {std::max<std::int64_t>(count, 0), std::max<std::int64_t>(bytes, 0), std::max<std::int64_t>(requested, 0)};
    }
  };

  // Counts of one thread since its last fold: the blocks that the root pool is charged with.
  class Shards {
   public:
    void add(bool is_small, std::size_t rounded, std::size_t asked) {
      of(is_small).ups.add({1, static_cast<std::int64_t>(rounded), static_cast<std::int64_t>(asked)});
    }
    void subtract(bool is_small, std::size_t rounded, std::size_t asked) {
      of(is_small).downs.add({1, static_cast<std::int64_t>(rounded), static_cast<std::int64_t>(asked)});
    }
    // After add(): ahead of the totals by more than the lease. Then settle().
    bool is_ahead(bool is_small) const {
      const Kind& kind = is_small ? small_ : large_;
      return kind.balance().exceeds(kind.lease);
    }
    // After subtract(): so far behind that the totals look too high to others. Then fold().
    bool is_behind(bool is_small) const {
      const Amounts balance = (is_small ? small_ : large_).balance();
      return balance.bytes < -kFoldBytes || balance.requested < -kFoldBytes || balance.count < -kFoldBlocks;
    }
    const Amounts& lease(bool is_small) const { return (is_small ? small_ : large_).lease; }

   private:
    friend class Ledger;
    struct Kind {
      Amounts ups;
      Amounts downs;
      Amounts lease;

      Amounts balance() const { return ups.plus(downs, -1); }
      // Each block counts, so without one there are no bytes either.
      bool is_clean() const { return (ups.count | downs.count | lease.count | lease.bytes | lease.requested) == 0; }
    };
    bool is_clean() const { return small_.is_clean() && large_.is_clean(); }
    Kind& of(bool is_small) { return is_small ? small_ : large_; }

    Kind small_;
    Kind large_;
  };

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
  Charge confirm(Account* account, bool is_small, std::size_t rounded, std::size_t asked, Shards* shards, bool force);
  // Returns the account when this was the last thing that kept a closed one alive: the caller retires it. `waits`: the
  // block stays active, for other streams may use it still, until end_waiting().
  // `idle`: gets the isolated pool that this was the last block of, when nobody can allocate from it any more; it is
  // kept alive until release() is called for it.
  Account* uncharge(std::uint32_t account_id, bool is_small, std::size_t rounded, std::size_t asked, Shards* shards,
                    bool waits = false, Account** idle = nullptr);
  // Shards that are ahead get a longer lease or are folded. False when other threads' leases stand against that: all
  // threads' must be folded, these last.
  bool settle(Shards& shards, bool is_small);
  void fold(Shards& shards);
  // After all shards were folded for the sake of a peak: for some time nobody gets a lease, so that threads at their
  // common peak share a lock and do not take each other's leases away in turn.
  void suspend_leases();

  // A block that will be uncharged keeps its pool alive until release() is called for it. release() returns the account
  // when this was the last thing that did so: the caller retires it. `idle`: as for uncharge().
  void keep(std::uint32_t account_id);
  Account* release(std::uint32_t account_id, Account** idle = nullptr);
  // The pool that is closed and those below it, one call for each, from `next_id` 0 on: those that are isolated and
  // have no block. Kept alive until release() is called for it; nullptr: there are no more.
  Account* next_idle(const Account& closed, std::uint32_t& next_id);
  // A block that was uncharged waits for other streams no longer.
  void end_waiting(bool is_small, std::size_t rounded, std::size_t asked);
  std::int64_t waiting_bytes() const;

  // Held bytes. False when the device limit would be passed.
  bool try_hold(std::size_t bytes);
  void unhold(std::size_t bytes);
  // After a commit that try_hold() allowed; so many of the bytes are of the small pool.
  void count_commit(std::size_t bytes, std::size_t shared_bytes);
  void count_decommit(std::size_t bytes, std::size_t shared_bytes = 0);  // includes unhold()
  void count_move(std::size_t bytes);
  void count_ranges(int change);   // contiguous backed ranges that came or went
  void share(std::int64_t bytes);  // moves held bytes into (or out of) the small pool
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
  // False, and nothing changed, when more than `limit` is held.
  bool set_limit(std::size_t limit);
  // Also below what is held: then nothing more is, until memory went back.
  void force_limit(std::size_t limit);
  void set_soft_limit(std::size_t limit);

  Account* open(std::string name, Account* parent, ArenaFamily* family, bool isolated, std::size_t limit,
                std::size_t soft);
  // No new blocks.
  void close(Account& account);
  // The user's handle is gone. Returns the account when nothing else keeps it alive: the caller then calls erase().
  Account* drop(Account& account);
  // One thread's current pool changes (nullptr: root). Returns `from` when nothing keeps it alive any more.
  Account* switch_user(Account* from, Account* to);
  // Frees the record and its id. Returns the parent when that in turn is now free to go.
  Account* erase(Account* account);

  // False, and nothing changed, when more than `limit` is allocated.
  bool set_limit(Account& account, std::size_t limit);
  void set_soft_limit(Account& account, std::size_t limit);
  Account read(const Account& account) const;  // a copy, taken at one moment
  struct Listed {
    Account account;              // its `parent` may be gone
    std::uint32_t parent_id = 0;  // 0: the root
  };
  // Every account, each as it is at one moment, by id. No lock is held for longer than one takes.
  std::vector<Listed> accounts() const;
  std::string name_of(std::uint32_t account_id) const;

  DeviceStats read_stats();
  void reset(void (*action)(Stat&));
  void reset_peaks(Account& account);
  // Both count for the device, for the pool that asked, and for the pool whose limit refused. Either may be nullptr.
  void count_oom(Account* asker, const Account* refuser);
  void count_pressure_call(Account* asker, const Account* refuser);
  void count_retry();

  SpinLock& lock_for_fork() { return lock_; }

 private:
  void fold_locked(Shards& shards);
  bool has_room(bool is_small, const Amounts& more, const Amounts& returned) const;
  Amounts leased() const { return leased_small_.plus(leased_large_, 1); }
  void rearm_soft() {
    above_soft_.store(held_ > soft_limit_, std::memory_order_relaxed);
    // Between the folds of two threads the totals may stand below zero.
    const std::int64_t allocated = std::max<std::int64_t>(stats_.blocks.all.bytes.current, 0);
    if (held_ <= soft_limit_ || static_cast<std::size_t>(allocated) <= soft_limit_) {
      soft_armed_ = true;
    }
  }
  // The pool whose own arena the blocks of `account` come from; nullptr: the device's.
  static Account* arena_owner(Account* account) {
    while (account != nullptr && !account->isolated) account = account->parent;
    return account;
  }
  static Account* find_idle(Account* account);  // keeps it alive
  static bool is_done(const Account& account) {
    return account.closed && !account.referenced && account.children == 0 && account.users == 0 &&
           account.pending == 0 && account.blocks.count.current == 0;
  }

  mutable SpinLock lock_;
  DeviceStats stats_;
  Amounts leased_small_;
  Amounts leased_large_;
  std::int64_t forgotten_allocations_ = 0;  // counted before the sums were reset
  int lease_refusals_ = 0;                  // still to come, after suspend_leases()
  std::size_t held_ = 0;
  std::size_t limit_ = kNoLimit;
  std::size_t soft_limit_ = kNoLimit;
  bool soft_armed_ = true;
  std::atomic<bool> above_soft_{false};
  std::atomic<bool> soft_crossed_{false};              // read without the lock on the way of every large block
  std::vector<std::unique_ptr<Account>> accounts_{1};  // by id; slot 0 is the root pool, which has no record
  std::vector<std::uint32_t> free_ids_;
};

}  // namespace mempool
