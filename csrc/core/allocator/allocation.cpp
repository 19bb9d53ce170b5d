#include "core/allocator/allocation.h"

#include <algorithm>
#include <utility>

#include "common/expects.h"
#include "core/allocator/policy.h"
#include "core/pages/size_classes.h"

namespace mempool {
namespace {

using CacheGuard = std::lock_guard<OwnerLock>;
using Outcome = Ledger::Charge::Outcome;

}  // namespace

BlockSize size_of_request(std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(bytes > 0);
  return {bytes <= kLargestRequest ? round_block(bytes) : 0, bytes};
}

Allocation::Allocation(DeviceParts& parts, BlockSize size, StreamId stream, ArenaFamily* family) noexcept
    : parts_(parts), size_(size), stream_(stream), cache_(parts.caches.obtain()), family_(family), stay_(parts.pools) {}

void* Allocation::run() {
  Ledger::Charge charge = reserve_current();
  if (family_ == nullptr) family_ = &parts_.arenas.family_of(account_);
  if (size_.rounded == 0) refuse({.reason = OomReason::size_overflow}, nullptr, outcome_);
  arena_ = parts_.arenas.arena_of(*family_, stream_);
  if (arena_ == nullptr) {
    let_go(charge);
    refuse({.reason = OomReason::metadata_refused}, nullptr, outcome_);
  }
  if (cache_ != nullptr) serve_stream();
  while (true) {
    if (charge.outcome != Outcome::charged) [[unlikely]]
      insist(charge);
    Refusal why = Refusal::none;
    if (void* const address = obtain(why)) {
      if (effort_ != Effort::none) parts_.ledger.count_retry();
      return hand_over(address);
    }
    // While more room is sought, callbacks included, this request stands in no other's way.
    let_go({});
    if (why == Refusal::asleep) {
      throw PoolAsleepError("mempool: pool '" + parts_.accounts.name_of(account_id()) +
                            "' is asleep: wake() it before it takes new blocks.");
    }
    make_room(why);
    charge = parts_.ledger.reserve(account_, size_.rounded);
  }
}

// ---- its place under the limits ----------------------------------------------------------------------------------

// Finds out which pool the thread is in and holds a place there, in one step: another thread may end the stay at any
// moment, and the pool with it. The reserved bytes keep the pool, or else `stay_` does.
Ledger::Charge Allocation::reserve_current() {
  Ledger::Charge result;
  if (cache_ == nullptr) return result;
  const CacheGuard guard(cache_->lock);
  account_ = cache_->pools.current();
  if (account_ == nullptr) return result;
  if (size_.rounded == 0) {
    stay_.take(account_);
    return result;
  }
  result = parts_.ledger.reserve(account_, size_.rounded);
  if (result.outcome != Outcome::charged) stay_.take(account_);
  return result;
}

// A limit has refused, or a pool is closed: holds a place after the pressure callbacks, or throws.
void Allocation::insist(Ledger::Charge result) {
  PressureOutcome outcome;
  for (bool pressed = false; result.outcome != Outcome::charged; pressed = true) {
    if (result.outcome == Outcome::closed) {
      throw PoolClosedError("mempool: pool '" + result.pool->name + "' is closed: it takes no new blocks.");
    }
    if (!pressed) press(result.pool, size_.rounded - (result.limit - result.allocated), true, outcome);
    if (pressed || outcome.calls == 0) {
      refuse({.reason = OomReason::pool_limit,
              .pool = result.pool->name,
              .allocated = result.allocated,
              .limit = result.limit},
             result.pool, outcome);
    }
    result = parts_.ledger.reserve(account_, size_.rounded);
  }
  if (outcome.calls > 0) parts_.ledger.count_retry();
}

// The opposite of a reservation: its pool stays alive for this request.
void Allocation::let_go(const Ledger::Charge& charge) {
  if (account_ == nullptr || charge.outcome != Outcome::charged) return;
  stay_.take(account_);
  parts_.ledger.cancel(account_, size_.rounded);
}

// Soft limits speak up here: the allocation has succeeded whatever their callbacks do.
inline void Allocation::confirm() {
  Ledger::Charge result;
  if (account_ == nullptr && cache_ != nullptr) {  // as on the fast way, so that it can lease room
    cache_->lock.lock();
    Shard& shard = cache_->shards.of(size_.is_small());
    shard.add(size_);
    if (shard.is_ahead()) {
      parts_.caches.settle_and_unlock(*cache_, size_.is_small(), nullptr);
    } else {
      cache_->lock.unlock();
    }
  } else {
    result = charge();
  }
  if (result.soft_over > 0) {
    PressureOutcome outcome;
    press(result.pool, result.soft_over, false, outcome);
  }
  if (parts_.ledger.take_soft_crossing()) after_growth();
}

Ledger::Charge Allocation::charge() noexcept {
  {
    std::unique_lock<OwnerLock> guard;
    if (cache_ != nullptr) guard = std::unique_lock(cache_->lock);
    const Ledger::Charge result =
        parts_.ledger.confirm(account_, size_, cache_ != nullptr ? &cache_->shards : nullptr, false);
    if (result.outcome != Outcome::unsettled) [[likely]]
      return result;
  }
  return parts_.caches.confirm_for_peak(account_, size_, cache_);
}

void* Allocation::hand_over(void* address) {
  if (parts_.observers.any()) {
    parts_.observers.on_alloc({address, size_, account_id(), stream_, family_}, &capture_stack);
  }
  confirm();
  return address;
}

// ---- its block ---------------------------------------------------------------------------------------------------

// A thread that goes over to another stream takes its cache along.
void Allocation::serve_stream() noexcept {
  if (!family_->is_thread_cached) return;
  if (cache_->stream() == stream_) {
    cache_->strange_requests = 0;
  } else if (++cache_->strange_requests > kStrangers) {
    const CacheGuard guard(cache_->lock);
    cache_->serve(*arena_);
    cache_->strange_requests = 0;
  }
}

// What lies free in the arena comes first; then what waits in threads' caches, and what other streams have caught up
// with, joins it; only then does it grow.
void* Allocation::obtain(Refusal& why) noexcept {
  if (effort_ == Effort::borrowed) return borrow(why);
  if (void* const address = take(false, why)) return address;
  if (why == Refusal::asleep || is_hopeless(why)) return nullptr;
  parts_.collector.collect();
  // Another family's arena can take over what the default one has free.
  if (parts_.arenas.default_family().is_thread_cached) parts_.caches.recall_for_growth(cache_);
  if (cache_ != nullptr) {  // growth looks at the totals
    const CacheGuard guard(cache_->lock);
    parts_.ledger.fold(cache_->shards);
  }
  void* const address = take(true, why);
  parts_.tell_growth();
  return address;
}

// A snapshot reads tags: here and in take_from() they are written with the lock held of whatever the block comes from.
inline void* Allocation::take_cached(ThreadCache& keeper) noexcept {
  if (size_.rounded <= kSmallMax) {
    SmallBlock block;
    if (!keeper.pop(size_class_of(size_.rounded), block)) return nullptr;
    *block.tag = {static_cast<std::uint32_t>(size_.asked), account_id()};
    return block.address;
  }
  Span* const span = keeper.pop_span(size_);
  if (span == nullptr) {
    keeper.make_way(size_.is_small());
    return nullptr;
  }
  span->hand_out(size_.asked, account_id(), &keeper);
  return span->address();
}

// Out of the thread's cache, if blocks of that arena may wait there, else out of the arena.
void* Allocation::take(bool may_grow, Refusal& why) noexcept {
  ThreadCache* const keeper = cache_ != nullptr && cache_->serves(arena_) ? cache_ : nullptr;
  std::unique_lock<OwnerLock> cache_guard;
  if (keeper != nullptr) {
    cache_guard = std::unique_lock(keeper->lock);
    if (void* const address = take_cached(*keeper)) return address;
  }
  const ArenaSet::Lenders lenders(parts_.arenas, *arena_, may_grow && !family_->has_own_memory());
  const ArenaGuard guard(arena_->mutex);
  if (arena_->pages.asleep() || family_->asleep.load(std::memory_order_relaxed)) {
    why = Refusal::asleep;
    return nullptr;
  }
  return take_from(*arena_, {may_grow, lenders.heaps(), may_commit_, may_wait_, family_->floor.load() == 0}, keeper,
                   why);
}

// Out of what is free in families that lend it. The block is the pool's of this request all the same.
void* Allocation::borrow(Refusal& why) noexcept {
  void* address = nullptr;
  parts_.arenas.for_lending(stream_, [&](Arena& arena) {
    address = take_from(arena, {.may_grow = false, .may_commit = false, .may_wait = may_wait_}, nullptr, why);
    if (address != nullptr) family_ = &arena.family;
    return address != nullptr;
  });
  return address;
}

// Expects that the arena's lock is held, and that of `keeper`: of the cache that takes more such blocks (nullptr:
// none).
void* Allocation::take_from(Arena& arena, const Supply& supply, ThreadCache* keeper, Refusal& why) noexcept {
  if (size_.rounded <= kSmallMax) {
    const std::size_t size_class = size_class_of(size_.rounded);
    SmallBlock block;
    const bool is_found = keeper != nullptr ? keeper->refill(size_class, block, supply, why)
                                            : arena.slabs.allocate(size_class, &block, 1, supply, why) > 0;
    if (!is_found) return nullptr;
    *block.tag = {static_cast<std::uint32_t>(size_.asked), account_id()};
    return block.address;
  }
  Span* const span = arena.pages.allocate(size_.rounded, supply, why);
  if (span == nullptr) return nullptr;
  span->hand_out(size_.asked, account_id(), keeper);
  if (keeper != nullptr && size_.is_small() && !parts_.ledger.above_soft_limit()) refill(arena, *keeper);
  return span->address();
}

// Medium blocks: out of what lies ready alone. Both locks are held.
void Allocation::refill(Arena& arena, ThreadCache& keeper) noexcept {
  for (std::size_t more = keeper.more_medium(size_.rounded); more > 0; --more) {
    Refusal why = Refusal::none;
    Span* const span = arena.pages.allocate(size_.rounded, {.may_grow = false}, why);
    if (span == nullptr) return;
    span->tag = {kFreeTag, 0};
    keeper.push_medium(span);
  }
}

// More than there can ever be, or than a limit: whatever else is given up for it would be for nothing.
bool Allocation::is_hopeless(Refusal& why) const noexcept {
  const bool is_over_limit = size_.rounded > parts_.ledger.limit();
  if (!is_over_limit && size_.rounded > parts_.ledger.most_held()) {
    why = Refusal::budget;
    return true;
  }
  if (!is_over_limit && size_.rounded <= arena_->memory().capacity_bytes()) return false;
  why = is_over_limit ? Refusal::limit : Refusal::backend;
  return true;
}

// Whether a request that the backend has just refused has more of a chance now, by what went back to it since. Where
// memory is of handles that stay whole, a try takes all that is left, and gives it back.
bool Allocation::may_fit() noexcept {
  if (parts_.memory->stream_events() == nullptr) return true;  // where it is a system call it costs little
  const std::size_t free = family_->has_own_memory() ? 0 : parts_.arenas.free_bytes();
  const std::size_t new_bytes = std::min(arena_->memory().available_bytes(), parts_.ledger.room());
  return size_.rounded <= free || size_.rounded - free <= new_bytes;
}

// One step further toward memory for a request that found none: what waits in thread caches; blocks that wait for other
// streams, the oldest that would do first; idle memory of other streams, once they have caught up; free handles of any
// arena (given back, their bytes can be asked for anew at another address); what the framework keeps; the user's
// callbacks; what other families lend. Throws OutOfMemory when nothing is left to try.
void Allocation::make_room(Refusal why) {
  // A try that only moves memory says nothing of why there is no more.
  why = refusal_ = why != Refusal::none ? why : refusal_;
  if (effort_ == Effort::none && is_hopeless(why)) effort_ = Effort::released;
  switch (effort_) {
    case Effort::none:
      parts_.caches.recall();
      may_commit_ = parts_.memory->stream_events() == nullptr;  // where it is a system call it costs little
      effort_ = Effort::recalled;
      return;
    case Effort::recalled:
      if (parts_.collector.await(size_.rounded)) return;  // and again, as long as any waits
      effort_ = Effort::awaited;
      [[fallthrough]];
    case Effort::awaited:
      effort_ = Effort::waited;
      if (parts_.memory->stream_events() != nullptr) {
        may_wait_ = true;
        return;
      }
      [[fallthrough]];
    case Effort::waited:
      release();
      may_commit_ = why == Refusal::metadata || may_fit();
      effort_ = Effort::released;
      return;
    case Effort::released:
      effort_ = Effort::relieved;
      if (!is_hopeless(why) && parts_.relieve()) return try_anew();
      [[fallthrough]];
    case Effort::relieved:
      effort_ = Effort::pressed;
      press(nullptr, size_.rounded, true, outcome_);
      if (outcome_.calls > 0) return is_hopeless(why) ? void() : try_anew();
      [[fallthrough]];
    case Effort::pressed:
      effort_ = Effort::borrowed;
      if (family_ == &parts_.arenas.default_family() && !is_hopeless(why)) return;
      [[fallthrough]];
    case Effort::borrowed:
      break;
  }
  refuse(facts_of(why, parts_.ledger), nullptr, outcome_);
}

// What is free goes back: of the family itself where it is fixed, which nothing else touches, then of any arena. What
// is kept for the family goes back, too, where it cannot move together to serve the request.
void Allocation::release() noexcept {
  const bool moves = parts_.options.stitch && parts_.memory->capabilities().can_move;
  parts_.arenas.release_for(*family_);
  parts_.arenas.release(size_.rounded + parts_.memory->granule_bytes(), true, moves ? nullptr : family_);
}

// After memory was freed by others: it lies in caches and arenas.
void Allocation::try_anew() noexcept {
  parts_.caches.recall();
  while (parts_.collector.await(size_.rounded)) continue;
  release();
  may_commit_ = true;
}

}  // namespace mempool
