// An allocation's way from the request to the block, and back.
#include "core/caching_allocator.h"

#include <utility>

#include "core/page_map.h"

namespace mempool {
namespace {

using CacheGuard = std::lock_guard<SpinLock>;
using ArenaGuard = std::lock_guard<AdaptiveMutex>;

// Larger requests could not be rounded, or would pass the 48 bits of address that the page map knows.
constexpr std::size_t kLargestRequest = std::size_t{1} << 47;

constinit std::atomic<const Hooks*> g_hooks{nullptr};
constinit thread_local bool t_pressing = false;

std::uint32_t capture_stack() {
  const Hooks* const hooks = g_hooks.load(std::memory_order_acquire);
  return hooks != nullptr && hooks->capture_stack != nullptr ? hooks->capture_stack() : 0;
}

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

// ---- allocate ----------------------------------------------------------------------------------------------------

void* CachingAllocator::allocate(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  ThreadCache* const mine = ThreadRegistry::find(slot_);
  if (bytes <= kMediumMax && mine != nullptr && mine->current == nullptr && !history_.enabled()) [[likely]] {
    if (void* const address = allocate_cached(*mine, bytes)) return address;
  }
  return allocate_slow(bytes);
}

// A block of the root pool out of this thread's cache: no other lock, no shared counter.
void* CachingAllocator::allocate_cached(ThreadCache& mine, std::size_t bytes) noexcept {
  const CacheGuard guard(mine.lock);
  void* address = nullptr;
  std::size_t rounded = 0;
  if (bytes <= kSmallMax) {
    const std::size_t size_class = size_class_of(bytes);
    SmallBlock block;
    if (!mine.pop(size_class, block)) return nullptr;
    *block.tag = {static_cast<std::uint32_t>(bytes), 0};
    address = block.address;
    rounded = kSizeClasses[size_class].block_bytes;
  } else {
    rounded = round_block(bytes);
    Span* const span = mine.pop_medium(rounded);
    if (span == nullptr) return nullptr;
    span->tag = {static_cast<std::uint32_t>(bytes), 0};
    address = span->address();
  }
  mine.shard.add(rounded, bytes);
  mine.fold_if_due();
  return address;
}

void* CachingAllocator::allocate_slow(std::size_t bytes) {
  ThreadCache* const mine = cache();
  Request request{bytes, 0, mine != nullptr ? mine->current : nullptr, mine, false};
  PressureOutcome outcome;
  if (bytes > kLargestRequest) refuse(request, {.reason = OomReason::size_overflow}, outcome);
  request.rounded = round_block(bytes);
  request.is_small = request.rounded <= kMediumMax;
  charge(request);
  Refusal why = Refusal::none;
  Effort effort = Effort::none;
  void* address = obtain(request, why);
  while (address == nullptr) {
    try {
      make_room(request, why, effort, outcome);
    } catch (...) {
      const std::uint32_t id = request.account != nullptr ? request.account->id : 0;
      uncharge(id, request.is_small, request.rounded, request.asked, mine);
      throw;
    }
    address = obtain(request, why);
    if (address != nullptr) ledger_.count_retry();
  }
  if (ledger_.take_soft_crossing()) after_growth();
  if (history_.enabled()) {
    history_.on_alloc(address, request.rounded, bytes, request.account != nullptr ? request.account->id : 0,
                      capture_stack());
  }
  return address;
}

// Charges the request, after pressure callbacks if a limit refuses at first. Throws when it is refused for good.
void CachingAllocator::charge(Request& request) {
  PressureOutcome outcome;
  for (bool pressed = false;; pressed = true) {
    Ledger::Charge result;
    if (request.cache != nullptr) {
      const CacheGuard guard(request.cache->lock);
      result = ledger_.charge(request.account, request.is_small, request.rounded, request.asked, &request.cache->shard);
    } else {
      result = ledger_.charge(request.account, request.is_small, request.rounded, request.asked, nullptr);
    }
    switch (result.outcome) {
      case Ledger::Charge::Outcome::charged:
        if (result.soft_over > 0) press(request.account, result.pool->name, result.soft_over, false, outcome);
        if (pressed) ledger_.count_retry();
        return;
      case Ledger::Charge::Outcome::closed:
        throw PoolClosedError("mempool: pool '" + result.pool->name + "' is closed: it takes no new blocks.");
      case Ledger::Charge::Outcome::refused:
        if (!pressed) {
          const std::size_t needed = request.rounded - (result.limit - result.allocated);
          press(request.account, result.pool->name, needed, true, outcome);
          if (outcome.calls > 0) continue;
        }
        refuse(request,
               {.reason = OomReason::pool_limit,
                .pool = result.pool->name,
                .allocated = result.allocated,
                .limit = result.limit},
               outcome);
    }
  }
}

void CachingAllocator::uncharge(std::uint32_t account_id, bool is_small, std::size_t rounded, std::size_t asked,
                                ThreadCache* mine) noexcept {
  Account* done = nullptr;
  if (mine != nullptr) {
    const CacheGuard guard(mine->lock);
    done = ledger_.uncharge(account_id, is_small, rounded, asked, &mine->shard);
  } else {
    done = ledger_.uncharge(account_id, is_small, rounded, asked, nullptr);
  }
  if (done != nullptr) [[unlikely]]
    retire(done);
}

void* CachingAllocator::obtain(const Request& request, Refusal& why) noexcept {
  Arena& arena = arena_of(request.account);
  if (request.is_small && arena.thread_cached && request.cache != nullptr && options_.thread_cache_bytes > 0) {
    return obtain_cached(request, why);
  }
  const BlockTag tag{static_cast<std::uint32_t>(request.asked), request.account != nullptr ? request.account->id : 0};
  const ArenaGuard guard(arena.mutex);
  if (request.rounded <= kSmallMax) {
    SmallBlock block;
    if (arena.slabs.allocate(size_class_of(request.rounded), &block, 1, why) == 0) return nullptr;
    *block.tag = tag;
    return block.address;
  }
  Span* const span = arena.pages.allocate(request.rounded, why);
  if (span == nullptr) return nullptr;
  span->tag = tag;
  span->requested = request.asked;
  return span->address();
}

// As obtain(), for a block that may wait in this thread's cache.
void* CachingAllocator::obtain_cached(const Request& request, Refusal& why) noexcept {
  ThreadCache& mine = *request.cache;
  const BlockTag tag{static_cast<std::uint32_t>(request.asked), request.account != nullptr ? request.account->id : 0};
  const CacheGuard cache_guard(mine.lock);
  if (request.rounded <= kSmallMax) {
    const std::size_t size_class = size_class_of(request.rounded);
    SmallBlock block;
    if (!mine.pop(size_class, block) && !mine.refill(size_class, block, why)) return nullptr;
    *block.tag = tag;
    return block.address;
  }
  Span* span = mine.pop_medium(request.rounded);
  if (span == nullptr) {
    const ArenaGuard guard(default_arena_->mutex);
    span = default_arena_->pages.allocate(request.rounded, why);
  }
  if (span == nullptr) return nullptr;
  span->tag = tag;
  return span->address();
}

// One step further toward memory for a request that found none: first what waits in thread caches, then free handles
// of any arena (given back, their bytes can be asked for anew at another address), then the user's callbacks. Throws
// OutOfMemory when nothing is left to try.
void CachingAllocator::make_room(const Request& request, Refusal why, Effort& effort, PressureOutcome& outcome) {
  const std::size_t wanted = request.rounded + memory_->granule_bytes();
  switch (effort) {
    case Effort::none:
      recall();
      effort = Effort::recalled;
      return;
    case Effort::recalled:
      release(wanted);
      effort = Effort::released;
      return;
    case Effort::released: {
      const std::string pool = request.account != nullptr ? ledger_.name_of(request.account->id) : "default";
      press(request.account, pool, request.rounded, true, outcome);
      if (outcome.calls > 0) {
        recall();  // what the callbacks freed lies in caches and arenas
        release(wanted);
        effort = Effort::pressed;
        return;
      }
      break;
    }
    case Effort::pressed:
      break;
  }
  refuse(request, {.reason = reason_of(why), .limit = ledger_.limit()}, outcome);
}

// Held bytes crossed the soft limit: caches and free handles first, then the callbacks.
void CachingAllocator::after_growth() {
  const std::size_t soft = ledger_.soft_limit();
  trim(soft);
  const std::size_t held = ledger_.held();
  if (held <= soft) return;
  PressureOutcome outcome;
  press(nullptr, "default", held - soft, false, outcome);
}

void CachingAllocator::press(Account* account, const std::string& pool, std::size_t needed, bool failing,
                             PressureOutcome& outcome) {
  const Hooks* const hooks = g_hooks.load(std::memory_order_acquire);
  if (hooks == nullptr || hooks->pressure == nullptr || t_pressing) return;
  t_pressing = true;
  hooks->pressure(pool.c_str(), needed, failing, outcome);
  t_pressing = false;
  if (outcome.calls > 0) ledger_.count_pressure_call(account);
}

void CachingAllocator::refuse(const Request& request, OomInfo info, const PressureOutcome& outcome) {
  ledger_.count_oom(request.account);
  info.device = device_;
  info.requested = request.asked;
  info.held = ledger_.held();
  if (info.reason != OomReason::pool_limit) {
    if (request.account != nullptr) {
      const Account account = ledger_.read(*request.account);
      info.pool = account.name;
      info.allocated = static_cast<std::size_t>(account.blocks.bytes.current);
    } else {
      info.pool = "default";
      info.allocated = static_cast<std::size_t>(stats().blocks.all.bytes.current);
    }
    // The failing request itself is still charged while memory is sought for it.
    if (info.reason != OomReason::size_overflow) info.allocated -= request.rounded;
    if (info.reason != OomReason::device_limit) info.limit = kNoLimit;
  }
  {
    Arena& arena = arena_of(request.account);
    const ArenaGuard guard(arena.mutex);
    info.largest_free = arena.pages.largest_free();
  }
  info.pressure_calls = outcome.calls;
  info.callback_error = outcome.error;
  info.callback_error_id = outcome.error_id;
  throw OutOfMemory(std::move(info));
}

// ---- free --------------------------------------------------------------------------------------------------------

bool CachingAllocator::deallocate(void* address) noexcept {
  if (address == nullptr) return true;
  Span* const span = PageMap::instance().find(address);
  if (span == nullptr) return false;
  if (history_.enabled()) [[unlikely]]
    history_.on_free(address);
  ThreadCache* const mine = cache();
  SmallBlock block{address, &span->tag};
  if (span->state == Span::State::slab) block.tag = span->slab->tags() + span->slab->index_of(address);
  const BlockTag tag = *block.tag;
  const bool caches = options_.thread_cache_bytes > 0 && mine != nullptr && span->segment->arena->thread_cached;
  if (!caches || tag.account != 0 || span->bytes > kMediumMax) {
    free_slow(span, block, mine);
    return true;
  }
  const CacheGuard guard(mine->lock);
  block.tag->requested = kFreeTag;
  if (span->state == Span::State::slab) {
    const std::size_t size_class = span->slab->size_class;
    mine->push(size_class, block);
    mine->shard.subtract(kSizeClasses[size_class].block_bytes, tag.requested);
  } else {
    const std::size_t bytes = span->bytes;
    mine->push_medium(span);
    mine->shard.subtract(bytes, tag.requested);
  }
  mine->fold_if_due();
  return true;
}

// A block of a pool, of an isolated arena, or a large one. The block goes first, then its charge: a retired pool's
// arena may be gone right after.
void CachingAllocator::free_slow(Span* span, const SmallBlock& block, ThreadCache* mine) noexcept {
  Arena& arena = *span->segment->arena;
  const bool is_slab = span->state == Span::State::slab;
  const std::size_t rounded = is_slab ? span->slab->info().block_bytes : span->bytes;
  const bool is_small = rounded <= kMediumMax;
  const std::size_t asked = is_small ? block.tag->requested : span->requested;
  const std::uint32_t account = block.tag->account;
  if (is_small && arena.thread_cached && mine != nullptr && options_.thread_cache_bytes > 0) {
    const CacheGuard guard(mine->lock);
    block.tag->requested = kFreeTag;
    if (is_slab) {
      mine->push(span->slab->size_class, block);
    } else {
      mine->push_medium(span);
    }
  } else {
    const ArenaGuard guard(arena.mutex);
    if (is_slab) {
      arena.slabs.free(block);
    } else {
      span->tag.requested = kFreeTag;
      arena.pages.free(span);
    }
  }
  uncharge(account, is_small, rounded, asked, mine);
}

std::size_t CachingAllocator::block_bytes(const void* address) noexcept {
  const Span* const span = PageMap::instance().find(address);
  if (span == nullptr) return 0;
  return span->state == Span::State::slab ? span->slab->info().block_bytes : span->bytes;
}

}  // namespace mempool
