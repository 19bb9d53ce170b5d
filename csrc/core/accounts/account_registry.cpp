#include "core/accounts/account_registry.h"

#include <mutex>
#include <utility>

#include "common/errors.h"
#include "common/expects.h"

namespace mempool {
namespace {

using Guard = std::lock_guard<SpinLock>;

std::size_t used_bytes(const Account& account) { return static_cast<std::size_t>(account.blocks.bytes.current); }

}  // namespace

Account* AccountRegistry::open(std::string name, Account* parent, ArenaFamily* family, bool isolated, std::size_t limit,
                               std::size_t soft_limit, PoolUse use) {
  auto account = std::make_unique<Account>();
  account->name = std::move(name);
  account->parent = parent;
  account->family = family;
  account->isolated = isolated;
  account->limit = limit;
  account->soft_limit = soft_limit;
  account->for_one_request = use.for_one_request;
  std::unique_ptr<PoolGroup> fresh;
  if (!use.label.empty() || parent == nullptr) {
    fresh = std::make_unique<PoolGroup>();
    fresh->label = use.label.empty() ? PoolGroups::kOther : std::move(use.label);
  }
  Account* const out = account.get();
  {
    const Guard guard(lock_);
    out->group = join(parent != nullptr ? parent->group : nullptr, fresh);
    if (out->group != nullptr) {
      add(std::move(account));
      return out;
    }
  }
  throw ConfigError("metrics_label '" + fresh->label + "': the pools of this process have " +
                    std::to_string(PoolGroups::kMost) +
                    " labels already, which is the most. A label names a kind of pools, not each of them.");
}

// With the lock held. Expects a group.
void AccountRegistry::add(std::unique_ptr<Account> account) {
  Account& added = *account;
  if (free_ids_.empty()) {
    free_ids_.reserve(accounts_.size() + 1);  // so that erase() never allocates
    added.id = static_cast<std::uint32_t>(accounts_.size());
    accounts_.push_back(std::move(account));
  } else {
    added.id = free_ids_.back();
    free_ids_.pop_back();
    accounts_[added.id] = std::move(account);
  }
  if (added.parent != nullptr) ++added.parent->children;
  const Account* above = added.parent;
  while (above != nullptr && above->group != added.group) above = above->parent;
  added.is_head = above == nullptr;
  ++added.group->pools;
  if (added.is_head) added.group->add_head(added.limit);
}

// The group of the label of `fresh`, which is that group if there was none; without `fresh`, the parent's. nullptr:
// there is no room for another.
PoolGroup* AccountRegistry::join(PoolGroup* parents, std::unique_ptr<PoolGroup>& fresh) noexcept {
  if (fresh == nullptr) return parents;
  PoolGroup* const known = groups_.find(fresh->label);
  return known != nullptr ? known : groups_.add(fresh);
}

void AccountRegistry::close(Account& account) {
  const Guard guard(lock_);
  account.closed = true;
}

Account* AccountRegistry::drop(Account& account) {
  const Guard guard(lock_);
  account.closed = true;
  account.referenced = false;
  return is_done(account) ? &account : nullptr;
}

Account* AccountRegistry::erase(Account* account) {
  std::unique_ptr<Account> gone;  // destroyed behind the lock: it frees memory
  const Guard guard(lock_);
  MEMPOOL_EXPECTS(is_done(*account) && accounts_[account->id].get() == account);
  Account* const parent = account->parent;
  --account->group->pools;
  if (account->is_head) account->group->remove_head(account->limit);
  gone = std::move(accounts_[account->id]);
  free_ids_.push_back(account->id);
  if (parent == nullptr) return nullptr;
  --parent->children;
  return is_done(*parent) ? parent : nullptr;
}

void AccountRegistry::keep(Account* account) {
  if (account == nullptr) return;
  const Guard guard(lock_);
  MEMPOOL_EXPECTS(accounts_[account->id].get() == account);
  ++account->users;
}

Account* AccountRegistry::release(Account* account) {
  if (account == nullptr) return nullptr;
  const Guard guard(lock_);
  MEMPOOL_EXPECTS(account->users > 0);
  --account->users;
  return is_done(*account) ? account : nullptr;
}

void AccountRegistry::keep_for_block(std::uint32_t account_id) {
  const Guard guard(lock_);
  if (Account* const own = find(account_id)) ++own->users;
}

AccountRegistry::Ended AccountRegistry::release_block(std::uint32_t account_id) {
  const Guard guard(lock_);
  Account* const own = find(account_id);
  if (own == nullptr) return {};
  MEMPOOL_EXPECTS(own->users > 0);
  --own->users;
  return end_block(own);
}

AccountRegistry::Ended AccountRegistry::end_block(Account* account) {
  if (account == nullptr) return {};
  Account* const idle = keep_idle(account);  // first: what it keeps is not done
  return {is_done(*account) ? account : nullptr, idle};
}

// The owner of the arena that the blocks of `account` come from, if there are none and will be none. One that is done
// is retired anyway.
Account* AccountRegistry::keep_idle(Account* account) {
  Account* const owner = arena_owner(account);
  if (owner == nullptr || owner->own_blocks > 0 || is_done(*owner)) return nullptr;
  for (const Account* a = owner; a != nullptr; a = a->parent) {
    if (!a->closed) continue;
    ++owner->users;
    return owner;
  }
  return nullptr;
}

Account* AccountRegistry::next_idle(const Account& closed, std::uint32_t& next_id) {
  const Guard guard(lock_);
  if (!closed.isolated && closed.children == 0) return nullptr;
  while (next_id < accounts_.size()) {
    Account* const account = accounts_[next_id++].get();
    if (account == nullptr || !account->isolated) continue;
    const Account* a = account;
    while (a != nullptr && a != &closed) a = a->parent;
    if (a == nullptr || account->own_blocks > 0) continue;
    ++account->users;
    return account;
  }
  return nullptr;
}

bool AccountRegistry::set_limit(Account& account, std::size_t limit) {
  const Guard guard(lock_);
  if (limit < used_bytes(account) + account.pending) return false;
  if (account.is_head) {
    account.group->remove_head(account.limit);
    account.group->add_head(limit);
  }
  account.limit = limit;
  return true;
}

void AccountRegistry::set_soft_limit(Account& account, std::size_t limit) {
  const Guard guard(lock_);
  account.soft_limit = limit;
  account.soft_armed = used_bytes(account) <= limit;
}

void AccountRegistry::reset_peaks(Account& account) {
  const Guard guard(lock_);
  account.blocks.for_each(Stat::reset_peak);
  if (account.is_head && account.group->heads == 1) account.group->counts.blocks.for_each(Stat::reset_peak);
}

Account AccountRegistry::read(const Account& account) const {
  Account out;
  out.name.reserve(account.name.size());  // the copy below must not allocate under the lock
  const Guard guard(lock_);
  out = account;
  return out;
}

std::vector<PoolGroup> AccountRegistry::groups() const {
  std::vector<PoolGroup> out(1 + PoolGroups::kMost);
  for (PoolGroup& each : out) each.label.reserve(PoolGroups::kLongestLabel);  // nothing is allocated under the lock
  std::size_t count = 0;
  {
    const Guard guard(lock_);
    for (const auto& group : groups_.all()) out[count++] = *group;
  }
  out.resize(count);
  return out;
}

std::vector<AccountRegistry::Listed> AccountRegistry::list() const {
  std::vector<Listed> out;
  Listed next;
  std::size_t name_bytes = 0;
  for (std::size_t id = 1;;) {
    next.account.name.reserve(name_bytes);  // as above
    bool is_taken = false;
    {
      const Guard guard(lock_);
      if (id >= accounts_.size()) return out;
      const Account* const account = accounts_[id].get();
      name_bytes = account != nullptr ? account->name.size() : 0;
      if (name_bytes > next.account.name.capacity()) continue;
      is_taken = account != nullptr;
      if (is_taken) {
        next.account = *account;
        next.parent_id = account->parent != nullptr ? account->parent->id : 0;
      }
    }
    ++id;
    if (is_taken) out.push_back(next);
  }
}

std::string AccountRegistry::label_of(const Account& account) const {
  std::string out;
  out.reserve(PoolGroups::kLongestLabel);  // as above
  const Guard guard(lock_);
  out = account.group->label;
  return out;
}

std::string AccountRegistry::name_of(std::uint32_t account_id) const {
  const Guard guard(lock_);
  if (account_id >= accounts_.size() || accounts_[account_id] == nullptr) return "default";
  return accounts_[account_id]->name;
}

}  // namespace mempool
