// The pools of one device: their records by id, and what keeps each record alive.
//
// A record lives as long as anything may still refer to it: a handle of the user, a thread or a request that charges
// it, a block, or a pool below it. Whatever takes the last of these away gets the record back, and retires it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/bytes.h"
#include "common/spin_lock.h"
#include "core/accounts/pool_groups.h"
#include "core/accounts/stats.h"

namespace mempool {

class ArenaFamily;

// What a pool is for.
struct PoolUse {
  std::string label{};           // of its group; empty for that of the parent
  bool for_one_request = false;  // one of many that each live for a moment: a refusal by it is no event
};

struct Account {
  std::uint32_t id = 0;
  std::string name;
  Account* parent = nullptr;      // nullptr: the root pool, which is no Account
  ArenaFamily* family = nullptr;  // where blocks come from; shared with the parent unless `isolated`
  bool isolated = false;
  bool for_one_request = false;
  std::size_t limit = kNoLimit;
  std::size_t soft_limit = kNoLimit;
  bool soft_armed = true;      // fires once for each crossing from below
  bool closed = false;         // no new blocks
  bool referenced = true;      // a handle of the user still exists
  std::uint32_t children = 0;  // accounts whose parent this is; they keep it alive
  std::uint32_t users = 0;     // threads and requests that charge it; they keep it alive
  PoolGroup* group = nullptr;  // whose figures include this pool's
  bool is_head = false;        // none above it counts for that group
  std::size_t pending = 0;     // bytes of blocks that are being sought: they count toward the limit and nowhere else
  BlockStats blocks;
  std::int64_t own_blocks = 0;  // of an isolated one: those in its arena, without the isolated ones below
  std::int64_t ooms = 0;
  std::int64_t pressure_calls = 0;
};

class AccountRegistry {
 public:
  AccountRegistry() = default;
  AccountRegistry(const AccountRegistry&) = delete;
  AccountRegistry& operator=(const AccountRegistry&) = delete;

  // Throws std::bad_alloc, and ConfigError where there are too many labels.
  Account* open(std::string name, Account* parent, ArenaFamily* family, bool isolated, std::size_t limit,
                std::size_t soft_limit, PoolUse use = {});
  // No new blocks.
  void close(Account& account);
  // The user's handle is gone. Returns the account when nothing else keeps it alive: the caller retires it.
  Account* drop(Account& account);
  // Frees the record and its id. Returns the parent when that in turn is now free to go.
  Account* erase(Account* account);

  // Keeps the account alive until release() is called for it, which returns it when nothing keeps it any more. nullptr
  // is the root pool, which needs neither. keep() expects that something else keeps it at this moment.
  void keep(Account* account);
  Account* release(Account* account);

  // What the end of a block means for the pool that it was charged to.
  struct Ended {
    Account* done = nullptr;  // nothing keeps it any more: the caller retires it
    // An isolated pool without a block, from which no thread can allocate any more. It is kept alive until release().
    Account* idle = nullptr;
  };
  // A block that is not charged any more still keeps its pool alive, until release_block().
  void keep_for_block(std::uint32_t account_id);
  Ended release_block(std::uint32_t account_id);
  // The pool that is closed and those below it, one call for each, from `next_id` 0 on: those that are isolated and
  // have no block. Kept alive until release() is called for it; nullptr: there are no more.
  Account* next_idle(const Account& closed, std::uint32_t& next_id);

  // False, and nothing changed, when more than `limit` is allocated.
  bool set_limit(Account& account, std::size_t limit);
  void set_soft_limit(Account& account, std::size_t limit);
  void reset_peaks(Account& account);

  Account read(const Account& account) const;  // a copy, taken at one moment
  struct Listed {
    Account account;              // its `parent` may be gone
    std::uint32_t parent_id = 0;  // 0: the root
  };
  std::vector<PoolGroup> groups() const;  // as they are at one moment
  // Every account, each as it is at one moment, by id. No lock is held for longer than one takes.
  std::vector<Listed> list() const;
  std::string name_of(std::uint32_t account_id) const;
  std::string label_of(const Account& account) const;

  // ---- for the Ledger
  // Guards every account, and the totals of the device that change in one step with them.
  SpinLock& lock() const noexcept { return lock_; }
  // In the child of a fork: what the groups have counted is the parent's.
  void after_fork_in_child() noexcept {
    for (const auto& group : groups_.all()) group->inherited = group->counts;
  }
  // These expect that lock() is held, as that does. find(): nullptr for the root pool.
  Account* find(std::uint32_t account_id) const noexcept { return accounts_[account_id].get(); }
  static Ended end_block(Account* account);
  // The pool whose own arena the blocks of `account` come from; nullptr: the device's.
  static Account* arena_owner(Account* account) {
    while (account != nullptr && !account->isolated) account = account->parent;
    return account;
  }

 private:
  static Account* keep_idle(Account* account);
  static bool is_done(const Account& account) {
    return account.closed && !account.referenced && account.children == 0 && account.users == 0 &&
           account.pending == 0 && account.blocks.count.current == 0;
  }

  void add(std::unique_ptr<Account> account);
  PoolGroup* join(PoolGroup* parents, std::unique_ptr<PoolGroup>& fresh) noexcept;

  mutable SpinLock lock_;
  PoolGroups groups_;
  std::vector<std::unique_ptr<Account>> accounts_{1};  // by id; slot 0 is the root pool, which has no record
  std::vector<std::uint32_t> free_ids_;
};

}  // namespace mempool
