// Who uses how much. One ledger for each device: the totals of its root pool, the accounts of all other pools, and the
// physical memory held.
//
// How exact figures and a fast path go together:
//   - The root pool has no limit on allocated bytes, so a small block of the root pool is counted in the Shard of its
//     thread, which only that thread's lock guards. Shards are folded into the totals when their balance passes
//     kFoldBytes, before every other change that the same thread makes, and before every reading.
//   - Every other pool may have a limit, so its blocks, and all large ones, are counted here, under one spin lock for
//     the whole chain of parents: a check and all its charges are one step, a limit is never passed by a byte, and no
//     half-made charge of one thread can refuse another.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/bytes.h"
#include "common/spin_lock.h"
#include "core/stats.h"

namespace mempool {

class Arena;

struct Account {
  std::uint32_t id = 0;
  std::string name;
  Account* parent = nullptr;  // nullptr: the root pool, which is no Account
  Arena* arena = nullptr;     // where blocks come from; shared with the parent unless `isolated`
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
  std::int64_t ooms = 0;
  std::int64_t pressure_calls = 0;
};

class Ledger {
 public:
  // A thread may be this many bytes ahead of the totals.
  static constexpr std::int64_t kFoldBytes = 256 << 10;

  // Counts of one thread: blocks of at most kMediumMax bytes that the root pool is charged with.
  struct Shard {
    struct Balance {
      std::int64_t up = 0;
      std::int64_t down = 0;
      std::int64_t high = 0;
      void add(std::int64_t amount) {
        up += amount;
        high = high > up - down ? high : up - down;
      }
    };
    Balance count;
    Balance bytes;
    Balance requested;

    void add(std::size_t rounded, std::size_t asked) {
      count.add(1);
      bytes.add(static_cast<std::int64_t>(rounded));
      requested.add(static_cast<std::int64_t>(asked));
    }
    void subtract(std::size_t rounded, std::size_t asked) {
      count.down += 1;
      bytes.down += static_cast<std::int64_t>(rounded);
      requested.down += static_cast<std::int64_t>(asked);
    }
    bool empty() const { return count.up == 0 && count.down == 0; }
    bool due() const {
      const std::int64_t balance = bytes.up - bytes.down;
      return balance > kFoldBytes || balance < -kFoldBytes;
    }
  };

  struct Charge {
    enum class Outcome : std::uint8_t { charged, refused, closed } outcome = Outcome::charged;
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
  // `shard`: the calling thread's, whose lock it holds. The outcome is always `charged`.
  Charge confirm(Account* account, bool is_small, std::size_t rounded, std::size_t asked, Shard* shard);
  // Returns the account when this was the last thing that kept a closed one alive: the caller retires it.
  Account* uncharge(std::uint32_t account_id, bool is_small, std::size_t rounded, std::size_t asked, Shard* shard);
  void fold(Shard& shard);

  // Held bytes. False when the device limit would be passed.
  bool try_hold(std::size_t bytes);
  void unhold(std::size_t bytes);
  void count_commit(std::size_t bytes);    // after a commit that try_hold() allowed
  void count_decommit(std::size_t bytes);  // includes unhold()
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

  std::size_t held() const;
  std::size_t limit() const;
  std::size_t soft_limit() const;
  // False, and nothing changed, when more than `limit` is held.
  bool set_limit(std::size_t limit);
  void set_soft_limit(std::size_t limit);

  Account* open(std::string name, Account* parent, Arena* arena, bool isolated, std::size_t limit, std::size_t soft);
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
  std::string name_of(std::uint32_t account_id) const;

  DeviceStats read_stats() const;
  void reset(void (*action)(Stat&));
  void reset_peaks(Account& account);
  // Both count for the device, for the pool that asked, and for the pool whose limit refused. Either may be nullptr.
  void count_oom(Account* asker, const Account* refuser);
  void count_pressure_call(Account* asker, const Account* refuser);
  void count_retry();

  SpinLock& lock_for_fork() { return lock_; }

 private:
  void fold_locked(Shard& shard);
  void rearm_soft() {
    above_soft_.store(held_ > soft_limit_, std::memory_order_relaxed);
    if (held_ <= soft_limit_ || static_cast<std::size_t>(stats_.blocks.all.bytes.current) <= soft_limit_) {
      soft_armed_ = true;
    }
  }
  static bool is_done(const Account& account) {
    return account.closed && !account.referenced && account.children == 0 && account.users == 0 &&
           account.pending == 0 && account.blocks.count.current == 0;
  }

  mutable SpinLock lock_;
  DeviceStats stats_;
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
