// Where a block comes from when the thread's cache has none: arenas, other arenas, the backend, and what the user's
// callbacks can free.
#include <algorithm>
#include <utility>

#include "core/allocator/caching_allocator.h"

namespace mempool {
namespace {

using CacheGuard = std::lock_guard<OwnerLock>;
using ArenaGuard = std::lock_guard<AdaptiveMutex>;

constinit std::atomic<const Hooks*> g_hooks{nullptr};
constinit thread_local bool t_pressing = false;

OomReason reason_of(Refusal why) {
  switch (why) {
    case Refusal::limit:
      return OomReason::device_limit;
    case Refusal::metadata:
      return OomReason::metadata_refused;
    default:
      return OomReason::backend_refused;
  }
}

}  // namespace

void CachingAllocator::set_hooks(const Hooks* hooks) noexcept { g_hooks.store(hooks, std::memory_order_release); }

std::uint32_t CachingAllocator::capture_stack() {
  const Hooks* const hooks = g_hooks.load(std::memory_order_acquire);
  return hooks != nullptr && hooks->capture_stack != nullptr ? hooks->capture_stack() : 0;
}

// What lies free in the arena comes first; then what waits in threads' caches, and what other streams have caught up
// with, joins it; only then does it grow.
void* CachingAllocator::obtain(const Request& request, Refusal& why) noexcept {
  if (void* const address = take(request, false, why)) return address;
  if (why == Refusal::asleep || is_hopeless(request, why)) return nullptr;
  collect();
  if (default_family_->is_thread_cached) recall_for_growth(request.cache);  // another arena can take it over
  if (request.cache != nullptr) {                                           // growth looks at the totals
    const CacheGuard guard(request.cache->lock);
    ledger_.fold(request.cache->shards);
  }
  void* const address = take(request, true, why);
  if (const auto hook = growth_hook_.load(std::memory_order_relaxed)) hook(*this);
  return address;
}

// More than there can ever be, or than the device's limit: whatever else is given up for it would be for nothing.
bool CachingAllocator::is_hopeless(const Request& request, Refusal& why) const noexcept {
  const bool is_over_limit = request.size.rounded > ledger_.limit();
  if (!is_over_limit && request.size.rounded <= memory_->capacity_bytes()) return false;
  why = is_over_limit ? Refusal::limit : Refusal::backend;
  return true;
}

// Whether a request that the backend has just refused has more of a chance now, by what went back to it since. Where
// memory is of handles that stay whole, a try takes all that is left, and gives it back.
bool CachingAllocator::may_fit(const Request& request) noexcept {
  if (memory_->stream_events() == nullptr) return true;  // where it is a system call it costs little
  std::size_t free = 0;
  for_each_arena(
      [&free](Arena& arena) { free += static_cast<std::size_t>(arena.pages.free_ranges().bytes.all.current); });
  const std::size_t held = ledger_.held();
  const std::size_t limit = ledger_.limit();
  const std::size_t new_bytes = std::min(memory_->available_bytes(), limit > held ? limit - held : 0);
  return request.size.rounded <= free || request.size.rounded - free <= new_bytes;
}

// The other arenas with free memory, locked: what they have moves to the one that grows before new memory is asked for.
class CachingAllocator::Lenders {
 public:
  // The calling thread holds no arena's lock.
  Lenders(CachingAllocator& allocator, const Arena& own, bool wanted) {
    if (!wanted || !allocator.has_more_arenas_.load(std::memory_order_relaxed)) return;
    // Whoever holds several arenas holds this too, so it does not matter in which order.
    registry_ = std::unique_lock(allocator.arenas_mutex_);
    try {
      heaps_.reserve(allocator.arenas_.size());
      locks_.reserve(allocator.arenas_.size());
    } catch (const std::bad_alloc&) {
      return;
    }
    for (const auto& arena : allocator.arenas_) {
      if (arena.get() == &own || arena->family.kind == ArenaFamily::Kind::fixed) continue;
      std::unique_lock<AdaptiveMutex> guard(arena->mutex);
      if (arena->pages.whole_free_bytes() == 0) continue;
      heaps_.push_back(&arena->pages);
      locks_.push_back(std::move(guard));
    }
  }
  std::span<PageHeap* const> heaps() const { return heaps_; }

 private:
  std::unique_lock<std::mutex> registry_;
  std::vector<PageHeap*> heaps_;
  std::vector<std::unique_lock<AdaptiveMutex>> locks_;
};

void* CachingAllocator::take(const Request& request, bool may_grow, Refusal& why) noexcept {
  Arena& arena = *request.arena;
  if (request.cache != nullptr && request.cache->serves(&arena)) return take_cached(request, may_grow, why);
  const Lenders lenders(*this, arena, may_grow);
  const Supply supply{may_grow, lenders.heaps(), request.may_commit, request.may_wait};
  const ArenaGuard guard(arena.mutex);
  if (arena.pages.asleep() || arena.family.asleep.load(std::memory_order_relaxed)) {
    why = Refusal::asleep;
    return nullptr;
  }
  if (request.size.rounded <= kSmallMax) {
    SmallBlock block;
    if (arena.slabs.allocate(size_class_of(request.size.rounded), &block, 1, supply, why) == 0) return nullptr;
    *block.tag = {static_cast<std::uint32_t>(request.size.asked), request.account_id()};
    return block.address;
  }
  Span* const span = arena.pages.allocate(request.size.rounded, supply, why);
  if (span == nullptr) return nullptr;
  span->hand_out(request.size.asked, request.account_id(), nullptr);
  return span->address();
}

// As take(), for a block that may wait in this thread's cache.
void* CachingAllocator::take_cached(const Request& request, bool may_grow, Refusal& why) noexcept {
  ThreadCache& mine = *request.cache;
  const CacheGuard cache_guard(mine.lock);
  if (request.size.rounded <= kSmallMax) {
    const std::size_t size_class = size_class_of(request.size.rounded);
    SmallBlock block;
    if (!mine.pop(size_class, block)) {
      const Lenders lenders(*this, *request.arena, may_grow);
      if (!mine.refill(size_class, block, {may_grow, lenders.heaps(), request.may_commit, request.may_wait}, why))
        return nullptr;
    }
    *block.tag = {static_cast<std::uint32_t>(request.size.asked), request.account_id()};
    return block.address;
  }
  Span* span = mine.pop_span(request.size);
  if (span == nullptr) {
    mine.make_way(request.size.is_small());
    const Lenders lenders(*this, *request.arena, may_grow);
    const ArenaGuard guard(request.arena->mutex);
    span = request.arena->pages.allocate(request.size.rounded,
                                         {may_grow, lenders.heaps(), request.may_commit, request.may_wait}, why);
  }
  if (span == nullptr) return nullptr;
  span->hand_out(request.size.asked, request.account_id(), &mine);
  return span->address();
}

// One step further toward memory for a request that found none: what waits in thread caches; blocks that wait for other
// streams, the oldest that would do first; idle memory of other streams, once they have caught up; free handles of any
// arena (given back, their bytes can be asked for anew at another address); the user's callbacks. Throws OutOfMemory
// when nothing is left to try.
void CachingAllocator::make_room(Request& request, Refusal why, Effort& effort, PressureOutcome& outcome) {
  const std::size_t wanted = request.size.rounded + memory_->granule_bytes();
  // A try that only moves memory says nothing of why there is no more.
  why = request.refusal = why != Refusal::none ? why : request.refusal;
  if (effort == Effort::none && is_hopeless(request, why)) effort = Effort::released;
  switch (effort) {
    case Effort::none:
      recall();
      request.may_commit = memory_->stream_events() == nullptr;  // where it is a system call it costs little
      effort = Effort::recalled;
      return;
    case Effort::recalled:
      if (await_other_streams(request.size.rounded)) return;  // and again, as long as any waits
      effort = Effort::awaited;
      [[fallthrough]];
    case Effort::awaited:
      effort = Effort::waited;
      if (memory_->stream_events() != nullptr) {
        request.may_wait = true;
        return;
      }
      [[fallthrough]];
    case Effort::waited:
      release(wanted, true);
      request.may_commit = why == Refusal::metadata || may_fit(request);
      effort = Effort::released;
      return;
    case Effort::released:
      press(request, nullptr, request.size.rounded, true, outcome);
      if (outcome.calls > 0) {
        effort = Effort::pressed;
        if (is_hopeless(request, why)) return;
        recall();  // what the callbacks freed lies in caches and arenas
        while (await_other_streams(request.size.rounded)) continue;
        release(wanted, true);
        request.may_commit = true;
        return;
      }
      break;
    case Effort::pressed:
      break;
  }
  refuse(request, {.reason = reason_of(why), .limit = ledger_.limit()}, nullptr, outcome);
}

// Waits until blocks of together `bytes` are free that had to wait for other streams. False: there were none.
bool CachingAllocator::await_other_streams(std::size_t bytes) noexcept {
  const auto waiting = [this] { return static_cast<std::size_t>(ledger_.waiting_bytes()); };
  const std::size_t before = waiting();
  collect_all();
  bool any = waiting() < before;
  if (any && waiting() + bytes <= before) return true;
  for (std::size_t most = deferred_.count(); most > 0; --most) {
    if (!deferred_.wait_for_one(bytes)) break;
    any = true;
    collect_all();
    if (waiting() + bytes <= before) break;
  }
  return any;
}

// Held bytes grew above the soft limit: caches and free handles first, then the callbacks.
void CachingAllocator::after_growth(const Request& request) {
  const std::size_t soft = ledger_.soft_limit();
  trim(soft, false);
  if (!ledger_.take_soft_alarm()) return;
  const std::size_t held = ledger_.held();
  PressureOutcome outcome;
  press(request, nullptr, held > soft ? held - soft : 0, false, outcome);
}

// Runs the callbacks, with the root pool current: what they allocate must not fail at the limit that called them.
void CachingAllocator::press(const Request& request, const Account* refuser, std::size_t needed, bool failing,
                             PressureOutcome& outcome) {
  const Hooks* const hooks = g_hooks.load(std::memory_order_acquire);
  if (hooks == nullptr || hooks->pressure == nullptr || t_pressing) return;
  const Account* const named = refuser != nullptr ? refuser : request.account;
  const std::string pool = named != nullptr ? named->name : "default";
  const std::size_t before = outcome.calls;
  accounts_.keep(request.account);  // keeps it alive meanwhile
  PoolEntry root;
  if (request.cache != nullptr) enter_pool(root, nullptr);
  t_pressing = true;
  hooks->pressure(pool.c_str(), needed, failing, outcome);
  t_pressing = false;
  leave_pool(root);
  accounts_.release(request.account);
  if (outcome.calls > before) ledger_.count_pressure_call(request.account, refuser);
}

void CachingAllocator::refuse(const Request& request, OomInfo info, const Account* refuser,
                              const PressureOutcome& outcome) {
  ledger_.count_oom(request.account, refuser);
  info.device = device_;
  info.requested = request.size.asked;
  info.held = ledger_.held();
  if (refuser == nullptr) {
    if (request.account != nullptr) {
      const Account account = accounts_.read(*request.account);
      info.pool = account.name;
      info.allocated = static_cast<std::size_t>(account.blocks.bytes.current);
    } else {
      info.pool = "default";
      info.allocated = static_cast<std::size_t>(stats().blocks.all.bytes.current);
    }
    if (info.reason != OomReason::device_limit) info.limit = kNoLimit;
  }
  {
    Arena* const arena = request.arena != nullptr ? request.arena : request.family->first.load();
    if (arena != nullptr) {
      const ArenaGuard guard(arena->mutex);
      info.largest_free = arena->pages.largest_free();
    }
  }
  info.pressure_calls = outcome.calls;
  info.callback_error = outcome.error;
  info.callback_error_id = outcome.error_id;
  if (StreamEvents* const events = memory_->stream_events()) info.device_failure = events->failure();
  throw OutOfMemory(std::move(info));
}

}  // namespace mempool
