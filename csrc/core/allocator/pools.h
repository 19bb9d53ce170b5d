// Pools from their opening to the end of their last block: which thread charges which, and what goes back when one
// ends.
#pragma once

#include <cstddef>
#include <string>

#include "core/accounts/account_registry.h"
#include "core/accounts/ledger.h"
#include "core/allocator/arena_set.h"
#include "core/allocator/cache_set.h"
#include "core/threads/pool_stack.h"

namespace mempool {

class Pools final : public ThreadCache::Owner {
 public:
  Pools(AccountRegistry& accounts, Ledger& ledger, ArenaSet& arenas, CacheSet& caches)
      : accounts_(accounts), ledger_(ledger), arenas_(arenas), caches_(caches) {}

  // `isolated` gives the pool an arena of its own. Children share the arena of their parent unless isolated too.
  Account* open(std::string name, Account* parent, bool isolated, std::size_t limit, std::size_t soft_limit,
                PoolUse use = {});
  // No new blocks from now on; live ones stay valid and are charged until they die.
  void close(Account& pool) noexcept;
  // The last handle is gone. Closes the pool; its record goes with its last block.
  void drop(Account& pool) noexcept;

  // The calling thread's new blocks are charged to `pool` (nullptr: the root) until the entry is left. Nests. A closed
  // pool is let in: the allocations that it then refuses say why. Throws std::bad_alloc.
  void enter(PoolEntry& entry, Account* pool);
  // From any thread: once this returns no new block is charged because of the entry. False: it was left before, or its
  // thread has ended.
  bool leave(PoolEntry& entry) noexcept;
  // The calling thread's entries, the innermost first. `visit` may leave the entry that it is given, no other.
  template <typename Visit>
  void for_each_entry(Visit visit) {
    ThreadCache* const mine = caches_.find();
    PoolEntry* next = mine != nullptr ? mine->pools.top() : nullptr;
    while (PoolEntry* const entry = next) {
      next = PoolStack::below(*entry);
      visit(*entry);
    }
  }

  // Physical bytes of the pool's own arenas; of a pool that is not isolated, what it is charged with.
  std::size_t held_bytes(const Account& pool);
  // Throws ConfigError when more is in use.
  void set_limit(Account& pool, std::size_t limit);

  // Takes a block off the books, which its pool may end with. `mine`: the calling thread's cache, nullptr for none;
  // its lock is not held. `waits` as for Ledger::uncharge().
  void uncharge(std::uint32_t account_id, BlockSize size, ThreadCache* mine, bool waits) noexcept;
  // What a block that was uncharged has kept its pool alive for is over.
  void release_block(std::uint32_t account_id) noexcept { end(accounts_.release_block(account_id)); }

  // Keeps a pool alive, once it was told which.
  class Stay {
   public:
    explicit Stay(Pools& pools) : pools_(pools) {}
    Stay(const Stay&) = delete;
    Stay& operator=(const Stay&) = delete;
    ~Stay() {
      if (account_ != nullptr) [[unlikely]]
        pools_.retire(pools_.accounts_.release(account_));
    }
    // Expects that something else keeps it at this moment. The first pool counts.
    void take(Account* account) {
      if (account_ != nullptr || account == nullptr) return;
      pools_.accounts_.keep(account);
      account_ = account;
    }

   private:
    Pools& pools_;
    Account* account_ = nullptr;
  };

 private:
  void take_back(ThreadCache& ended) noexcept override;
  void end(const AccountRegistry::Ended& ended) noexcept;
  void clear_out(Account& idle) noexcept;
  void clear_out_below(const Account& closed) noexcept;
  void retire(Account* account) noexcept;

  AccountRegistry& accounts_;
  Ledger& ledger_;
  ArenaSet& arenas_;
  CacheSet& caches_;
};

}  // namespace mempool
