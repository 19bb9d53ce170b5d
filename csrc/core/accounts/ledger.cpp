#include "core/accounts/ledger.h"

#include <mutex>
#include <utility>

namespace mempool {
namespace {

using Guard = std::lock_guard<SpinLock>;

std::int64_t as_signed(std::size_t bytes) { return static_cast<std::int64_t>(bytes); }
std::size_t as_size(std::int64_t bytes) { return static_cast<std::size_t>(bytes); }

void for_each_stat(BlockStats& blocks, void (*action)(Stat&)) {
  action(blocks.count);
  action(blocks.bytes);
  action(blocks.requested);
}

void for_each_stat(DeviceStats& stats, void (*action)(Stat&)) {
  for (ByPool<BlockStats>* blocks : {&stats.blocks, &stats.waiting, &stats.active}) {
    for (BlockStats* pool : {&blocks->all, &blocks->small, &blocks->large}) for_each_stat(*pool, action);
  }
  stats.reserved_bytes.for_each(action);
  stats.segments.for_each(action);
}

}  // namespace

// Whatever came before the balances of now lay within leases, which pass no peak.
void Ledger::fold_locked(Shards& shards) {
  if (shards.is_clean()) return;  // of a thread that is in a pool all the time
  const auto fold_in = [](BlockStats& blocks, const Amounts& ups, const Amounts& downs) {
    blocks.count.fold(ups.count, downs.count);
    blocks.bytes.fold(ups.bytes, downs.bytes);
    blocks.requested.fold(ups.requested, downs.requested);
  };
  Amounts ups;
  Amounts downs;
  for (Shards::Kind* kind : {&shards.small_, &shards.large_}) {
    const bool is_small = kind == &shards.small_;
    (is_small ? leased_small_ : leased_large_).subtract(kind->lease);
    fold_in(stats_.blocks.of(is_small), kind->ups, kind->downs);
    fold_in(stats_.active.of(is_small), kind->ups, kind->downs);
    ups.add(kind->ups);
    downs.add(kind->downs);
  }
  fold_in(stats_.blocks.all, ups, downs);
  fold_in(stats_.active.all, ups, downs);
  shards = {};
  rearm_soft();
}

void Ledger::fold(Shards& shards) {
  const Guard guard(lock_);
  fold_locked(shards);
}

void Ledger::suspend_leases() {
  constexpr int kRefusals = 64;
  const Guard guard(lock_);
  lease_refusals_ = kRefusals;
}

// Whether the totals, all leases but `returned`, and `more` together stay within the peaks: those of live blocks, and
// those of active ones.
bool Ledger::has_room(bool is_small, const Amounts& more, const Amounts& returned) const {
  const auto fits = [&](const BlockStats& blocks, const Amounts& leased) {
    const auto within = [](const Stat& stat, std::int64_t extra) { return stat.current + extra <= stat.peak; };
    return within(blocks.count, leased.count - returned.count + more.count) &&
           within(blocks.bytes, leased.bytes - returned.bytes + more.bytes) &&
           within(blocks.requested, leased.requested - returned.requested + more.requested);
  };
  const auto all_fit = [&](const ByPool<BlockStats>& pools) {
    return fits(pools.all, leased()) &&
           (is_small ? fits(pools.small, leased_small_) : fits(pools.large, leased_large_));
  };
  return all_fit(stats_.blocks) && all_fit(stats_.active);
}

bool Ledger::settle(Shards& shards, bool is_small) {
  // What small blocks are leased beyond the need of the moment, while there is room for many threads to do so.
  constexpr Amounts kAdvance{256, 256 << 10, 256 << 10};
  constexpr std::int64_t kThreads = 8;
  Shards::Kind& kind = shards.of(is_small);
  Amounts wanted = kind.balance().at_least_zero();
  Amounts& of_kind = is_small ? leased_small_ : leased_large_;
  const Guard guard(lock_);
  if (has_room(is_small, wanted, kind.lease)) {
    if (lease_refusals_ == 0) {
      if (is_small && has_room(true, wanted.plus(kAdvance, kThreads), kind.lease)) wanted = wanted.plus(kAdvance, 1);
      of_kind.subtract(kind.lease);
      of_kind.add(wanted);
      kind.lease = wanted;
      return true;
    }
    --lease_refusals_;
  } else if (leased().exceeds(shards.small_.lease.plus(shards.large_.lease, 1))) {
    return false;
  }
  fold_locked(shards);
  return true;
}

Ledger::Charge Ledger::reserve(Account* account, std::size_t rounded) {
  Charge result;
  const Guard guard(lock_);
  for (Account* a = account; a != nullptr; a = a->parent) {
    const std::size_t used = as_size(a->blocks.bytes.current) + a->pending;
    // used <= limit always holds, so the subtraction cannot wrap.
    const bool refused = rounded > a->limit - used;
    if (!a->closed && !refused) continue;
    result.outcome = a->closed ? Charge::Outcome::closed : Charge::Outcome::refused;
    result.pool = a;
    result.allocated = used;
    result.limit = a->limit;
    return result;
  }
  for (Account* a = account; a != nullptr; a = a->parent) a->pending += rounded;
  return result;
}

void Ledger::cancel(Account* account, std::size_t rounded) {
  const Guard guard(lock_);
  for (Account* a = account; a != nullptr; a = a->parent) a->pending -= rounded;
}

Ledger::Charge Ledger::confirm(Account* account, bool is_small, std::size_t rounded, std::size_t asked, Shards* shards,
                               bool force) {
  Charge result;
  const Guard guard(lock_);
  if (shards != nullptr) fold_locked(*shards);
  const bool leases_are_out = leased().exceeds({});
  if (leases_are_out && !force && !has_room(is_small, {1, as_signed(rounded), as_signed(asked)}, {})) {
    result.outcome = Charge::Outcome::unsettled;
    return result;
  }
  for (Account* a = account; a != nullptr; a = a->parent) {
    a->pending -= rounded;
    a->blocks.add(rounded, asked);
    const std::size_t used = as_size(a->blocks.bytes.current);
    // One crossing at a time: a parent that crossed too stays armed and fires at its next charge.
    if (result.soft_over == 0 && used > a->soft_limit && a->soft_armed) {
      a->soft_armed = false;
      result.pool = a;
      result.soft_over = used - a->soft_limit;
    }
  }
  if (Account* const owner = arena_owner(account)) ++owner->own_blocks;
  for (ByPool<BlockStats>* pools : {&stats_.blocks, &stats_.active}) {
    pools->all.add(rounded, asked);
    pools->of(is_small).add(rounded, asked);
  }
  return result;
}

Account* Ledger::uncharge(std::uint32_t account_id, bool is_small, std::size_t rounded, std::size_t asked,
                          Shards* shards, bool waits, Account** idle) {
  const Guard guard(lock_);
  if (shards != nullptr) fold_locked(*shards);  // before this: the order of ups and downs makes the peaks
  ByPool<BlockStats>& other = waits ? stats_.waiting : stats_.active;
  for (ByPool<BlockStats>* pools : {&stats_.blocks, &other}) {
    for (BlockStats* blocks : {&pools->all, &pools->of(is_small)}) {
      waits&& pools == &other ? blocks->add(rounded, asked) : blocks->subtract(rounded, asked);
    }
  }
  rearm_soft();
  Account* const own = accounts_[account_id].get();
  for (Account* a = own; a != nullptr; a = a->parent) {
    a->blocks.subtract(rounded, asked);
    if (as_size(a->blocks.bytes.current) <= a->soft_limit) a->soft_armed = true;
  }
  if (Account* const owner = arena_owner(own)) --owner->own_blocks;
  if (idle != nullptr) *idle = find_idle(own);
  return own != nullptr && is_done(*own) ? own : nullptr;
}

void Ledger::keep(std::uint32_t account_id) {
  const Guard guard(lock_);
  if (Account* const own = accounts_[account_id].get()) ++own->users;
}

Account* Ledger::release(std::uint32_t account_id, Account** idle) {
  const Guard guard(lock_);
  Account* const own = accounts_[account_id].get();
  if (own == nullptr) return nullptr;
  --own->users;
  if (idle != nullptr) *idle = find_idle(own);
  return is_done(*own) ? own : nullptr;
}

// The owner of the arena that the blocks of `account` come from, if there are none and will be none. One that is done
// is retired anyway.
Account* Ledger::find_idle(Account* account) {
  Account* const owner = arena_owner(account);
  if (owner == nullptr || owner->own_blocks > 0 || is_done(*owner)) return nullptr;
  for (const Account* a = owner; a != nullptr; a = a->parent) {
    if (!a->closed) continue;
    ++owner->users;
    return owner;
  }
  return nullptr;
}

Account* Ledger::next_idle(const Account& closed, std::uint32_t& next_id) {
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

void Ledger::end_waiting(bool is_small, std::size_t rounded, std::size_t asked) {
  const Guard guard(lock_);
  for (ByPool<BlockStats>* pools : {&stats_.waiting, &stats_.active}) {
    pools->all.subtract(rounded, asked);
    pools->of(is_small).subtract(rounded, asked);
  }
}

std::int64_t Ledger::waiting_bytes() const {
  const Guard guard(lock_);
  return stats_.waiting.all.bytes.current;
}

bool Ledger::try_hold(std::size_t bytes) {
  const Guard guard(lock_);
  if (held_ > limit_ || bytes > limit_ - held_) return false;
  held_ += bytes;
  if (held_ > soft_limit_) soft_crossed_.store(true);
  above_soft_.store(held_ > soft_limit_, std::memory_order_relaxed);
  return true;
}

void Ledger::unhold(std::size_t bytes) {
  const Guard guard(lock_);
  held_ -= bytes;
  rearm_soft();
}

void Ledger::count_commit(std::size_t bytes, std::size_t shared_bytes) {
  const Guard guard(lock_);
  change_by(stats_.reserved_bytes, as_signed(shared_bytes), as_signed(bytes - shared_bytes));
  ++stats_.commits;
}

void Ledger::count_decommit(std::size_t bytes, std::size_t shared_bytes) {
  const Guard guard(lock_);
  held_ -= bytes;
  rearm_soft();
  change_by(stats_.reserved_bytes, -as_signed(shared_bytes), -as_signed(bytes - shared_bytes));
  ++stats_.decommits;
}

void Ledger::count_move(std::size_t bytes) {
  const Guard guard(lock_);
  ++stats_.moves;
  stats_.moved_bytes += as_signed(bytes);
}

void Ledger::count_ranges(int change) {
  const Guard guard(lock_);
  change_by(stats_.segments, 0, change);
}

void Ledger::share(std::int64_t bytes) {
  const Guard guard(lock_);
  change_by(stats_.reserved_bytes, bytes, -bytes);
}

bool Ledger::take_soft_crossing() {
  return soft_crossed_.load(std::memory_order_relaxed) && soft_crossed_.exchange(false);
}

bool Ledger::take_soft_alarm() {
  const Guard guard(lock_);
  return held_ > soft_limit_ && std::exchange(soft_armed_, false);
}

Ledger::Moment Ledger::moment() const {
  const Guard guard(lock_);
  return {forgotten_allocations_ + stats_.blocks.all.count.allocated, as_size(stats_.blocks.all.bytes.peak), held_};
}

std::size_t Ledger::held() const {
  const Guard guard(lock_);
  return held_;
}

std::size_t Ledger::limit() const {
  const Guard guard(lock_);
  return limit_;
}

std::size_t Ledger::soft_limit() const {
  const Guard guard(lock_);
  return soft_limit_;
}

bool Ledger::set_limit(std::size_t limit) {
  const Guard guard(lock_);
  if (limit < held_) return false;
  limit_ = limit;
  return true;
}

void Ledger::force_limit(std::size_t limit) {
  const Guard guard(lock_);
  limit_ = limit;
}

void Ledger::set_soft_limit(std::size_t limit) {
  const Guard guard(lock_);
  soft_limit_ = limit;
  soft_armed_ = true;
  above_soft_.store(held_ > limit, std::memory_order_relaxed);
}

Account* Ledger::open(std::string name, Account* parent, ArenaFamily* family, bool isolated, std::size_t limit,
                      std::size_t soft) {
  auto account = std::make_unique<Account>();
  account->name = std::move(name);
  account->parent = parent;
  account->family = family;
  account->isolated = isolated;
  account->limit = limit;
  account->soft_limit = soft;
  Account* const out = account.get();
  const Guard guard(lock_);
  if (free_ids_.empty()) {
    free_ids_.reserve(accounts_.size() + 1);  // so that erase() never allocates
    out->id = static_cast<std::uint32_t>(accounts_.size());
    accounts_.push_back(std::move(account));
  } else {
    out->id = free_ids_.back();
    free_ids_.pop_back();
    accounts_[out->id] = std::move(account);
  }
  if (parent != nullptr) ++parent->children;
  return out;
}

void Ledger::close(Account& account) {
  const Guard guard(lock_);
  account.closed = true;
}

Account* Ledger::switch_user(Account* from, Account* to) {
  const Guard guard(lock_);
  if (to != nullptr) ++to->users;
  if (from == nullptr) return nullptr;
  --from->users;
  return is_done(*from) ? from : nullptr;
}

Account* Ledger::drop(Account& account) {
  const Guard guard(lock_);
  account.closed = true;
  account.referenced = false;
  return is_done(account) ? &account : nullptr;
}

Account* Ledger::erase(Account* account) {
  std::unique_ptr<Account> gone;  // destroyed behind the lock: it frees memory
  const Guard guard(lock_);
  Account* const parent = account->parent;
  gone = std::move(accounts_[account->id]);
  free_ids_.push_back(account->id);
  if (parent == nullptr) return nullptr;
  --parent->children;
  return is_done(*parent) ? parent : nullptr;
}

bool Ledger::set_limit(Account& account, std::size_t limit) {
  const Guard guard(lock_);
  if (limit < as_size(account.blocks.bytes.current) + account.pending) return false;
  account.limit = limit;
  return true;
}

void Ledger::set_soft_limit(Account& account, std::size_t limit) {
  const Guard guard(lock_);
  account.soft_limit = limit;
  account.soft_armed = as_size(account.blocks.bytes.current) <= limit;
}

Account Ledger::read(const Account& account) const {
  Account out;
  out.name.reserve(account.name.size());  // the copy below must not allocate under the lock
  const Guard guard(lock_);
  out = account;
  return out;
}

std::vector<Ledger::Listed> Ledger::accounts() const {
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

std::string Ledger::name_of(std::uint32_t account_id) const {
  const Guard guard(lock_);
  if (account_id >= accounts_.size() || accounts_[account_id] == nullptr) return "default";
  return accounts_[account_id]->name;
}

DeviceStats Ledger::read_stats() {
  const Guard guard(lock_);
  return stats_;
}

void Ledger::reset(void (*action)(Stat&)) {
  const Guard guard(lock_);
  const std::int64_t before = stats_.blocks.all.count.allocated;
  for_each_stat(stats_, action);
  forgotten_allocations_ += before - stats_.blocks.all.count.allocated;
}

void Ledger::reset_peaks(Account& account) {
  const Guard guard(lock_);
  for_each_stat(account.blocks, Stat::reset_peak);
}

void Ledger::count_retry() {
  const Guard guard(lock_);
  ++stats_.alloc_retries;
}

void Ledger::count_oom(Account* asker, const Account* refuser) {
  const Guard guard(lock_);
  ++stats_.ooms;
  if (asker != nullptr) ++asker->ooms;
  if (refuser != nullptr && refuser != asker) ++accounts_[refuser->id]->ooms;
}

void Ledger::count_pressure_call(Account* asker, const Account* refuser) {
  const Guard guard(lock_);
  ++stats_.pressure_calls;
  if (asker != nullptr) ++asker->pressure_calls;
  if (refuser != nullptr && refuser != asker) ++accounts_[refuser->id]->pressure_calls;
}

}  // namespace mempool
