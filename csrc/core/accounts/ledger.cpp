#include "core/accounts/ledger.h"

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <utility>

#include "common/expects.h"

namespace mempool {
namespace {

using Guard = std::lock_guard<SpinLock>;

std::int64_t as_signed(std::size_t bytes) { return static_cast<std::int64_t>(bytes); }
std::size_t as_size(std::int64_t bytes) { return static_cast<std::size_t>(bytes); }

void for_each_stat(DeviceStats& stats, void (*action)(Stat&)) {
  for (ByPool<BlockStats>* blocks : {&stats.blocks, &stats.waiting, &stats.active}) {
    for (BlockStats* pool : {&blocks->all, &blocks->small, &blocks->large}) pool->for_each(action);
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
  for (const bool is_small : {true, false}) {
    Shard& shard = shards.of(is_small);
    set_lease(shard, is_small, {});
    fold_in(stats_.blocks.of(is_small), shard.ups, shard.downs);
    fold_in(stats_.active.of(is_small), shard.ups, shard.downs);
    ups.add(shard.ups);
    downs.add(shard.downs);
  }
  fold_in(stats_.blocks.all, ups, downs);
  fold_in(stats_.active.all, ups, downs);
  shards.clear();
  rearm_soft();
}

void Ledger::fold(Shards& shards) {
  const Guard guard(lock_);
  fold_locked(shards);
}

void Ledger::forget(Shards& shards) {
  const Guard guard(lock_);
  fold_locked(shards);
  for (const bool is_small : {true, false}) {
    if (std::exchange(shards.of(is_small).has_leased, false)) --leasers_of(is_small);
  }
}

void Ledger::suspend_leases() {
  const Guard guard(lock_);
  lease_refusals_ = kLeaseRefusals;
  eases_.store(kEases, std::memory_order_relaxed);
}

// What the totals and all leases but `returned` leave below the peaks: those of live blocks, and those of active ones.
Amounts Ledger::room_below_peaks(bool is_small, const Amounts& returned) const {
  Amounts room{INT64_MAX, INT64_MAX, INT64_MAX};
  const auto bound_by = [&](const BlockStats& blocks, const Amounts& leased) {
    const auto below = [](const Stat& stat) { return stat.peak - stat.current; };
    room.count = std::min(room.count, below(blocks.count) - leased.count + returned.count);
    room.bytes = std::min(room.bytes, below(blocks.bytes) - leased.bytes + returned.bytes);
    room.requested = std::min(room.requested, below(blocks.requested) - leased.requested + returned.requested);
  };
  for (const ByPool<BlockStats>* const pools : {&stats_.blocks, &stats_.active}) {
    bound_by(pools->all, leased());
    is_small ? bound_by(pools->small, leased_small_) : bound_by(pools->large, leased_large_);
  }
  return room;
}

// What the thread has, and a part of the room that is left: a small one beyond the thread's share of all that there is,
// so that threads which go up and down together stay below their common peak.
Amounts Ledger::lease_within(const Amounts& room, const Shard& shard, bool is_small) const {
  const Amounts wanted = shard.balance().at_least({});
  const Amounts of_others = (is_small ? leased_small_ : leased_large_).plus(shard.lease, -1);
  const std::int64_t leasers = (is_small ? leasers_small_ : leasers_large_) + (shard.has_leased ? 0 : 1);
  const Amounts share = room.plus(of_others, 1).part(leasers).plus(wanted, -1);
  const Amounts left = room.plus(wanted, -1);
  const Amounts advance = left.part(kLeasePart).at_most(share.at_least(left.part(kLeasePartBeyondShare)));
  // Without room for one more block it would only stand in the way of other threads.
  const bool is_of_use = advance.count > 0 && advance.bytes > 0 && advance.requested > 0;
  return is_of_use ? wanted.plus(advance, 1) : wanted;
}

void Ledger::set_lease(Shard& shard, bool is_small, const Amounts& lease) {
  leased_of(is_small).subtract(shard.lease);
  leased_of(is_small).add(lease);
  shard.lease = lease;
  if (lease.exceeds({}) && !std::exchange(shard.has_leased, true)) ++leasers_of(is_small);
  shard.lower_least();
}

void Ledger::ease(Shards& shards, bool is_small) {
  Shard& shard = shards.of(is_small);
  const bool must_fold = kLeastOfNone.exceeds(shard.balance());
  if (!must_fold && eases_.load(std::memory_order_relaxed) == 0) return shard.lower_least();
  const Guard guard(lock_);
  if (must_fold) return fold_locked(shards);
  eases_.store(std::max(0, eases_.load(std::memory_order_relaxed) - 1), std::memory_order_relaxed);
  const Amounts wanted = shard.balance().at_least({});
  const Amounts room = room_below_peaks(is_small, shard.lease);
  const bool may_lease = lease_refusals_ == 0 && !wanted.exceeds(room);
  set_lease(shard, is_small, (may_lease ? lease_within(room, shard, is_small) : wanted).at_most(shard.lease));
}

bool Ledger::settle(Shards& shards, bool is_small) {
  Shard& shard = shards.of(is_small);
  const Guard guard(lock_);
  const Amounts room = room_below_peaks(is_small, shard.lease);
  if (!shard.balance().at_least({}).exceeds(room)) {
    if (lease_refusals_ == 0) {
      set_lease(shard, is_small, lease_within(room, shard, is_small));
      return true;
    }
    --lease_refusals_;
  } else if (leased().exceeds(shards.small.lease.plus(shards.large.lease, 1))) {
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
  for (Account* a = account; a != nullptr; a = a->parent) {
    MEMPOOL_EXPECTS(a->pending >= rounded);
    a->pending -= rounded;
  }
}

Ledger::Charge Ledger::confirm(Account* account, BlockSize size, Shards* shards, bool force) {
  Charge result;
  const Guard guard(lock_);
  if (shards != nullptr) fold_locked(*shards);
  const bool leases_are_out = leased().exceeds({});
  if (leases_are_out && !force && Amounts::of(size).exceeds(room_below_peaks(size.is_small(), {}))) {
    result.outcome = Charge::Outcome::unsettled;
    return result;
  }
  for (Account* a = account; a != nullptr; a = a->parent) {
    MEMPOOL_EXPECTS(a->pending >= size.rounded);  // reserve() came before
    a->pending -= size.rounded;
    a->blocks.add(size);
    if (a->is_head) a->group->counts.blocks.add(size);
    const std::size_t used = as_size(a->blocks.bytes.current);
    // One crossing at a time: a parent that crossed too stays armed and fires at its next charge.
    if (result.soft_over == 0 && used > a->soft_limit && a->soft_armed) {
      a->soft_armed = false;
      result.pool = a;
      result.soft_over = used - a->soft_limit;
    }
  }
  if (Account* const owner = AccountRegistry::arena_owner(account)) ++owner->own_blocks;
  for (ByPool<BlockStats>* pools : {&stats_.blocks, &stats_.active}) {
    pools->all.add(size);
    pools->of(size.is_small()).add(size);
  }
  return result;
}

AccountRegistry::Ended Ledger::uncharge(std::uint32_t account_id, BlockSize size, Shards* shards, bool waits) {
  const Guard guard(lock_);
  if (shards != nullptr) fold_locked(*shards);  // before this: the order of ups and downs makes the peaks
  ByPool<BlockStats>& other = waits ? stats_.waiting : stats_.active;
  for (ByPool<BlockStats>* pools : {&stats_.blocks, &other}) {
    for (BlockStats* blocks : {&pools->all, &pools->of(size.is_small())}) {
      waits&& pools == &other ? blocks->add(size) : blocks->subtract(size);
    }
  }
  rearm_soft();
  Account* const own = accounts_.find(account_id);
  for (Account* a = own; a != nullptr; a = a->parent) {
    a->blocks.subtract(size);
    if (a->is_head) a->group->counts.blocks.subtract(size);
    if (as_size(a->blocks.bytes.current) <= a->soft_limit) a->soft_armed = true;
  }
  if (Account* const owner = AccountRegistry::arena_owner(own)) --owner->own_blocks;
  return AccountRegistry::end_block(own);
}

void Ledger::end_waiting(BlockSize size) {
  const Guard guard(lock_);
  for (ByPool<BlockStats>* pools : {&stats_.waiting, &stats_.active}) {
    pools->all.subtract(size);
    pools->of(size.is_small()).subtract(size);
  }
}

std::int64_t Ledger::waiting_bytes() const {
  const Guard guard(lock_);
  return stats_.waiting.all.bytes.current;
}

void Ledger::count_commit(std::size_t bytes, std::size_t shared_bytes, Reserved& of) {
  const Guard guard(lock_);
  for (Reserved* const each : {&stats_.reserved_bytes, &of}) {
    change_by(*each, as_signed(shared_bytes), as_signed(bytes - shared_bytes));
  }
  ++stats_.commits;
}

void Ledger::count_decommit(std::size_t bytes, std::size_t shared_bytes, std::uint32_t generation, Reserved& of) {
  Budget* shared = nullptr;
  {
    const Guard guard(lock_);
    shared = unhold_locked(bytes);
    if (generation < counted_since_) shared = nullptr;
    for (Reserved* const each : {&stats_.reserved_bytes, &of}) {
      change_by(*each, -as_signed(shared_bytes), -as_signed(bytes - shared_bytes));
    }
    ++stats_.decommits;
    stats_.decommitted_bytes += as_signed(bytes);
  }
  if (shared != nullptr) shared->unhold(bytes);
}

// Only what is entirely free moves, and that is of the large pool.
void Ledger::count_move(std::size_t bytes, Reserved& from, Reserved& to) {
  const Guard guard(lock_);
  if (&from != &to) {
    change_by(from, 0, -as_signed(bytes));
    change_by(to, 0, as_signed(bytes));
  }
  ++stats_.moves;
  stats_.moved_bytes += as_signed(bytes);
}

void Ledger::count_ranges(int change) {
  const Guard guard(lock_);
  change_by(stats_.segments, 0, change);
}

void Ledger::share(std::int64_t bytes, Reserved& of) {
  const Guard guard(lock_);
  for (Reserved* const each : {&stats_.reserved_bytes, &of}) change_by(*each, bytes, -bytes);
}

Ledger::Reserved Ledger::read(const Reserved& reserved) const {
  const Guard guard(lock_);
  return reserved;
}

void Ledger::reset(Reserved& reserved, void (*action)(Stat&)) {
  const Guard guard(lock_);
  reserved.for_each(action);
}

Ledger::Moment Ledger::moment() const {
  const Guard guard(lock_);
  return {forgotten_allocations_ + stats_.blocks.all.count.allocated, as_size(stats_.blocks.all.bytes.peak), held_};
}

DeviceStats Ledger::read_stats() const {
  const Guard guard(lock_);
  return stats_;
}

DeviceMetrics Ledger::read_metrics(bool own) const {
  const Guard guard(lock_);
  return metrics_of(stats_, own ? inherited_ : DeviceStats{}, {limit_, soft_limit_, outside_});
}

std::size_t Ledger::inherited_held() const {
  const Guard guard(lock_);
  return as_size(inherited_.reserved_bytes.all.current);
}

void Ledger::reset(void (*action)(Stat&)) {
  const Guard guard(lock_);
  const std::int64_t before = stats_.blocks.all.count.allocated;
  for_each_stat(stats_, action);
  forgotten_allocations_ += before - stats_.blocks.all.count.allocated;
}

void Ledger::count_retry() {
  const Guard guard(lock_);
  ++stats_.alloc_retries;
}

// Whoever asked, and whose limit refused, once where that is the same. `action` gets the account's group unless it had
// it before.
template <typename Action>
void Ledger::for_both(Account* asker, const Account* refuser, Action action) {
  if (asker != nullptr) action(*asker, asker->group);
  if (refuser == nullptr || refuser == asker) return;
  Account& other = *accounts_.find(refuser->id);
  action(other, asker != nullptr && asker->group == other.group ? nullptr : other.group);
}

void Ledger::count_decay(std::size_t bytes) {
  const Guard guard(lock_);
  stats_.decayed_bytes += as_signed(bytes);
}

void Ledger::count_oom(Account* asker, const Account* refuser, OomReason reason) {
  const auto index = static_cast<std::size_t>(reason);
  const Guard guard(lock_);
  ++stats_.refusals[index];
  for_both(asker, refuser, [index](Account& account, PoolGroup* group) {
    ++account.ooms;
    if (group != nullptr) ++group->counts.refusals[index];
  });
}

void Ledger::count_pressure_call(Account* asker, const Account* refuser) {
  const Guard guard(lock_);
  ++stats_.pressure_calls;
  for_both(asker, refuser, [](Account& account, PoolGroup* group) {
    ++account.pressure_calls;
    if (group != nullptr) ++group->counts.pressure_calls;
  });
}

}  // namespace mempool
