#include "core/allocator/pools.h"

#include <mutex>
#include <new>
#include <utility>

#include "common/bytes.h"
#include "common/errors.h"

namespace mempool {

Account* Pools::open(std::string name, Account* parent, bool isolated, std::size_t limit, std::size_t soft_limit,
                     PoolUse use) {
  if (!isolated) {
    return accounts_.open(std::move(name), parent, &arenas_.family_of(parent), false, limit, soft_limit,
                          std::move(use));
  }
  ArenaFamily& family = arenas_.open(name, ArenaFamily::Kind::isolated);
  try {
    return accounts_.open(std::move(name), parent, &family, true, limit, soft_limit, std::move(use));
  } catch (...) {
    arenas_.close(family);
    throw;
  }
}

void Pools::close(Account& pool) noexcept {
  accounts_.close(pool);
  if (pool.isolated) pool.family->floor.store(0);
  clear_out_below(pool);
}

void Pools::drop(Account& pool) noexcept {
  Stay stay(*this);
  stay.take(&pool);
  if (pool.isolated) pool.family->floor.store(0);
  if (accounts_.drop(pool) == nullptr) clear_out_below(pool);
}

void Pools::enter(PoolEntry& entry, Account* pool) {
  ThreadCache* const mine = caches_.obtain();
  if (mine == nullptr) throw std::bad_alloc();
  accounts_.keep(pool);
  const std::lock_guard guard(mine->lock);
  mine->pools.push(entry, pool, *mine);
}

bool Pools::leave(PoolEntry& entry) noexcept {
  Account* left = nullptr;
  bool is_done = false;
  if (ThreadCache* const mine = caches_.find(); mine != nullptr && entry.home() == mine) {
    const std::lock_guard guard(mine->lock);
    is_done = entry.home() == mine;  // still: another thread may have been faster
    if (is_done) left = mine->pools.pop(entry);
  } else {
    ThreadRegistry& registry = ThreadRegistry::instance();
    const std::lock_guard guard(registry.mutex);  // its thread does not end meanwhile
    if (ThreadCache* const home = entry.home()) {
      const ForeignGuard home_guard(home->lock);
      is_done = entry.home() == home;
      if (is_done) left = home->pools.pop(entry);
    }
  }
  retire(accounts_.release(left));
  return is_done;
}

std::size_t Pools::held_bytes(const Account& pool) {
  if (!pool.isolated) return static_cast<std::size_t>(accounts_.read(pool).blocks.bytes.current);
  return arenas_.held_bytes(*pool.family);
}

void Pools::set_limit(Account& pool, std::size_t limit) {
  if (accounts_.set_limit(pool, limit)) return;
  const auto used = static_cast<std::size_t>(accounts_.read(pool).blocks.bytes.current);
  throw ConfigError("a limit of " + format_bytes(limit) + " (" + std::to_string(limit) + " bytes) for pool '" +
                    pool.name + "' is below the " + std::to_string(used) +
                    " bytes that it has in use: free tensors first. The limit is unchanged.");
}

void Pools::uncharge(std::uint32_t account_id, BlockSize size, ThreadCache* mine, bool waits) noexcept {
  AccountRegistry::Ended ended;
  if (mine != nullptr) {
    const std::lock_guard guard(mine->lock);
    if (account_id == 0 && !waits) {
      Shard& shard = mine->shards.of(size.is_small());
      shard.subtract(size);
      if (shard.is_behind()) ledger_.ease(mine->shards, size.is_small());
    } else {
      ended = ledger_.uncharge(account_id, size, &mine->shards, waits);
    }
  } else {
    ended = ledger_.uncharge(account_id, size, nullptr, waits);
  }
  end(ended);
}

void Pools::take_back(ThreadCache& ended) noexcept {
  while (true) {
    Account* left = nullptr;
    bool is_last = false;
    {
      const ForeignGuard guard(ended.lock);
      PoolEntry* const entry = ended.pools.top();
      is_last = entry == nullptr;
      if (is_last) {
        ended.flush();
        ledger_.forget(ended.shards);
      } else {
        left = ended.pools.pop(*entry);
      }
    }
    if (is_last) return;
    retire(accounts_.release(left));
  }
}

void Pools::end(const AccountRegistry::Ended& ended) noexcept {
  if (ended.idle != nullptr) [[unlikely]]
    clear_out(*ended.idle);
  if (ended.done != nullptr) [[unlikely]]
    retire(ended.done);
}

// Gives back what a pool holds from which no thread can allocate any more and which has no block, though its handle may
// live on. Expects that the registry keeps the pool alive for this call.
void Pools::clear_out(Account& idle) noexcept {
  // A block that waits for other streams keeps it alive as well. Then what sleeps sleeps on: it holds no memory.
  arenas_.clear_out(*idle.family, accounts_.read(idle).users == 1);
  retire(accounts_.release(&idle));
}

void Pools::clear_out_below(const Account& closed) noexcept {
  for (std::uint32_t next_id = 0; Account* const idle = accounts_.next_idle(closed, next_id);) clear_out(*idle);
}

// Frees the record of a pool that nothing uses any more, its arenas, and parents that only waited for it. nullptr:
// none.
void Pools::retire(Account* account) noexcept {
  while (account != nullptr) {
    if (account->isolated) arenas_.retire(*account->family);
    account = accounts_.erase(account);
  }
}

}  // namespace mempool
