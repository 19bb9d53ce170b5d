// An allocation's way from the request to the block, and back.
#include "core/caching_allocator.h"

#include <utility>

#include "core/page_map.h"

namespace mempool {
namespace {

using CacheGuard = std::lock_guard<OwnerLock>;
using ArenaGuard = std::lock_guard<AdaptiveMutex>;

// Larger requests could not be rounded, or would pass the 48 bits of address that the page map knows.
constexpr std::size_t kLargestRequest = std::size_t{1} << 47;

constinit std::atomic<const Hooks*> g_hooks{nullptr};
constinit thread_local bool t_pressing = false;

std::uint32_t capture_stack() {
  const Hooks* const hooks = g_hooks.load(std::memory_order_acquire);
  return hooks != nullptr && hooks->capture_stack != nullptr ? hooks->capture_stack() : 0;
}

// The tag of a large block has no room for its size: Span::requested has.
void fill_in(Span& span, std::size_t asked, std::uint32_t account, const ThreadCache* home) {
  const bool is_large = span.bytes > kMediumMax;
  span.tag = {is_large ? 0 : static_cast<std::uint32_t>(asked), account};
  span.requested = asked;
  span.home = home;
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
  if (mine != nullptr && mine->current == nullptr && !observed_.load(std::memory_order_relaxed) &&
      bytes <= kLargestRequest) [[likely]] {
    if (void* const address = allocate_cached(*mine, bytes)) return address;
  }
  return allocate_slow(bytes);
}

// A block of the root pool out of this thread's cache: no other lock, no shared counter.
void* CachingAllocator::allocate_cached(ThreadCache& mine, std::size_t bytes) noexcept {
  void* address = nullptr;
  bool settled = true;
  {
    const CacheGuard guard(mine.lock);
    std::size_t rounded = 0;
    bool is_small = true;
    if (bytes <= kSmallMax) {
      const std::size_t size_class = size_class_of(bytes);
      SmallBlock block;
      if (!mine.pop(size_class, block)) return nullptr;
      *block.tag = {static_cast<std::uint32_t>(bytes), 0};
      address = block.address;
      rounded = kSizeClasses[size_class].block_bytes;
    } else {
      rounded = round_block(bytes);
      is_small = rounded <= kMediumMax;
      Span* const span = is_small ? mine.pop_medium(rounded) : mine.pop_large(rounded);
      if (span == nullptr) return nullptr;
      fill_in(*span, bytes, 0, &mine);
      address = span->address();
    }
    mine.shards.add(is_small, rounded, bytes);
    if (mine.shards.is_ahead(is_small)) [[unlikely]]
      settled = ledger_.settle(mine.shards, is_small);
  }
  if (!settled) [[unlikely]]
    fold_for_peak(&mine);
  return address;
}

void* CachingAllocator::allocate_slow(std::size_t bytes) {
  ThreadCache* const mine = cache();
  Request request{bytes, 0, mine != nullptr ? mine->current : nullptr, mine, false};
  PressureOutcome outcome;
  if (bytes > kLargestRequest) refuse(request, {.reason = OomReason::size_overflow}, nullptr, outcome);
  request.rounded = round_block(bytes);
  request.is_small = request.rounded <= kMediumMax;
  Effort effort = Effort::none;
  while (true) {
    reserve(request);
    Refusal why = Refusal::none;
    void* const address = obtain(request, why);
    if (address != nullptr) {
      if (effort != Effort::none) ledger_.count_retry();
      if (recorder_.enabled()) recorder_.on_alloc(address, bytes, request.account_id());
      if (history_.enabled()) {
        history_.on_alloc(address, request.rounded, bytes, request.account_id(), capture_stack());
      }
      confirm(request);
      return address;
    }
    // While more room is sought, callbacks included, this request stands in nobody's way.
    if (request.account != nullptr) ledger_.cancel(request.account, request.rounded);
    if (why == Refusal::asleep) {
      throw PoolAsleepError("mempool: pool '" + ledger_.name_of(request.account_id()) +
                            "' is asleep: wake() it before it takes new blocks.");
    }
    make_room(request, why, effort, outcome);
  }
}

// Holds a place under the limits of the request's pools, after pressure callbacks if one refuses at first. Throws when
// it is refused for good.
void CachingAllocator::reserve(const Request& request) {
  if (request.account == nullptr) return;
  PressureOutcome outcome;
  for (bool pressed = false;; pressed = true) {
    const Ledger::Charge result = ledger_.reserve(request.account, request.rounded);
    if (result.outcome == Ledger::Charge::Outcome::charged) {
      if (pressed) ledger_.count_retry();
      return;
    }
    if (result.outcome == Ledger::Charge::Outcome::closed) {
      throw PoolClosedError("mempool: pool '" + result.pool->name + "' is closed: it takes no new blocks.");
    }
    if (!pressed) {
      press(request, result.pool, request.rounded - (result.limit - result.allocated), true, outcome);
      if (outcome.calls > 0) continue;
    }
    refuse(request,
           {.reason = OomReason::pool_limit,
            .pool = result.pool->name,
            .allocated = result.allocated,
            .limit = result.limit},
           result.pool, outcome);
  }
}

// Counts the block that was found. Soft limits speak up here: the allocation has succeeded whatever their callbacks do.
void CachingAllocator::confirm(const Request& request) {
  Ledger::Charge result;
  for (const bool force : {false, true}) {
    std::unique_lock<OwnerLock> guard;
    Ledger::Shards* shards = nullptr;
    if (request.cache != nullptr) {
      guard = std::unique_lock(request.cache->lock);
      shards = &request.cache->shards;
    }
    if (request.account == nullptr && shards != nullptr) {  // as on the fast way, so that it can lease room
      shards->add(request.is_small, request.rounded, request.asked);
      if (!shards->is_ahead(request.is_small) || ledger_.settle(*shards, request.is_small)) break;
      guard.unlock();
      fold_for_peak(request.cache);
      break;
    }
    result = ledger_.confirm(request.account, request.is_small, request.rounded, request.asked, shards, force);
    if (result.outcome != Ledger::Charge::Outcome::unsettled) break;
    if (shards != nullptr) guard.unlock();
    fold_for_peak(nullptr);
  }
  if (result.soft_over > 0) {
    PressureOutcome outcome;
    press(request, result.pool, result.soft_over, false, outcome);
  }
  if (ledger_.take_soft_crossing()) after_growth(request);
}

void CachingAllocator::uncharge(std::uint32_t account_id, bool is_small, std::size_t rounded, std::size_t asked,
                                ThreadCache* mine) noexcept {
  Account* done = nullptr;
  if (mine != nullptr) {
    const CacheGuard guard(mine->lock);
    if (account_id == 0) {
      mine->shards.subtract(is_small, rounded, asked);
      if (mine->shards.is_behind(is_small)) ledger_.fold(mine->shards);
    } else {
      done = ledger_.uncharge(account_id, is_small, rounded, asked, &mine->shards);
    }
  } else {
    done = ledger_.uncharge(account_id, is_small, rounded, asked, nullptr);
  }
  if (done != nullptr) [[unlikely]]
    retire(done);
}

// What lies free in the arena comes first; then what waits in threads' caches joins it; only then does it grow.
void* CachingAllocator::obtain(const Request& request, Refusal& why) noexcept {
  if (void* const address = take(request, false, why)) return address;
  if (arena_of(request.account).thread_cached) recall_for_growth(request.cache);
  if (request.cache != nullptr) {  // growth looks at the totals
    const CacheGuard guard(request.cache->lock);
    ledger_.fold(request.cache->shards);
  }
  void* const address = take(request, true, why);
  if (const auto hook = growth_hook_.load(std::memory_order_relaxed)) hook(*this);
  return address;
}

// The other arenas with free memory, locked: what they have moves to the one that grows before new memory is asked for.
class CachingAllocator::Lenders {
 public:
  // The calling thread holds no arena's lock.
  Lenders(CachingAllocator& allocator, const Arena& own, bool wanted) {
    if (!wanted || !allocator.has_isolated_.load(std::memory_order_relaxed)) return;
    // Whoever holds several arenas holds this too, so it does not matter in which order.
    registry_ = std::unique_lock(allocator.arenas_mutex_);
    try {
      heaps_.reserve(allocator.isolated_.size() + 1);
      locks_.reserve(allocator.isolated_.size() + 1);
    } catch (const std::bad_alloc&) {
      return;
    }
    const auto add = [&](Arena& arena) {
      if (&arena == &own) return;
      std::unique_lock<AdaptiveMutex> guard(arena.mutex);
      if (arena.pages.whole_free_bytes() == 0) return;
      heaps_.push_back(&arena.pages);
      locks_.push_back(std::move(guard));
    };
    add(*allocator.default_arena_);
    for (const auto& arena : allocator.isolated_) add(*arena);
  }
  std::span<PageHeap* const> heaps() const { return heaps_; }

 private:
  std::unique_lock<std::mutex> registry_;
  std::vector<PageHeap*> heaps_;
  std::vector<std::unique_lock<AdaptiveMutex>> locks_;
};

void* CachingAllocator::take(const Request& request, bool may_grow, Refusal& why) noexcept {
  Arena& arena = arena_of(request.account);
  if (arena.thread_cached && request.cache != nullptr) {
    return take_cached(request, may_grow, why);
  }
  const Lenders lenders(*this, arena, may_grow);
  const Supply supply{may_grow, lenders.heaps()};
  const ArenaGuard guard(arena.mutex);
  if (arena.pages.asleep()) {
    why = Refusal::asleep;
    return nullptr;
  }
  if (request.rounded <= kSmallMax) {
    SmallBlock block;
    if (arena.slabs.allocate(size_class_of(request.rounded), &block, 1, supply, why) == 0) return nullptr;
    *block.tag = {static_cast<std::uint32_t>(request.asked), request.account_id()};
    return block.address;
  }
  Span* const span = arena.pages.allocate(request.rounded, supply, why);
  if (span == nullptr) return nullptr;
  fill_in(*span, request.asked, request.account_id(), nullptr);
  return span->address();
}

// As take(), for a block that may wait in this thread's cache.
void* CachingAllocator::take_cached(const Request& request, bool may_grow, Refusal& why) noexcept {
  ThreadCache& mine = *request.cache;
  const CacheGuard cache_guard(mine.lock);
  if (request.rounded <= kSmallMax) {
    const std::size_t size_class = size_class_of(request.rounded);
    SmallBlock block;
    if (!mine.pop(size_class, block)) {
      const Lenders lenders(*this, *default_arena_, may_grow);
      if (!mine.refill(size_class, block, {may_grow, lenders.heaps()}, why)) return nullptr;
    }
    *block.tag = {static_cast<std::uint32_t>(request.asked), request.account_id()};
    return block.address;
  }
  Span* span = request.is_small ? mine.pop_medium(request.rounded) : mine.pop_large(request.rounded);
  if (span == nullptr) {
    const Lenders lenders(*this, *default_arena_, may_grow);
    const ArenaGuard guard(default_arena_->mutex);
    span = default_arena_->pages.allocate(request.rounded, {may_grow, lenders.heaps()}, why);
  }
  if (span == nullptr) return nullptr;
  fill_in(*span, request.asked, request.account_id(), &mine);
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
    case Effort::released:
      press(request, nullptr, request.rounded, true, outcome);
      if (outcome.calls > 0) {
        recall();  // what the callbacks freed lies in caches and arenas
        release(wanted);
        effort = Effort::pressed;
        return;
      }
      break;
    case Effort::pressed:
      break;
  }
  refuse(request, {.reason = reason_of(why), .limit = ledger_.limit()}, nullptr, outcome);
}

// Held bytes grew above the soft limit: caches and free handles first, then the callbacks.
void CachingAllocator::after_growth(const Request& request) {
  const std::size_t soft = ledger_.soft_limit();
  trim(soft);
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
  ledger_.switch_user(nullptr, request.account);  // keeps it alive meanwhile
  if (request.cache != nullptr) set_current_pool(nullptr);
  t_pressing = true;
  hooks->pressure(pool.c_str(), needed, failing, outcome);
  t_pressing = false;
  if (request.cache != nullptr) set_current_pool(request.account);
  ledger_.switch_user(request.account, nullptr);
  if (outcome.calls > before) ledger_.count_pressure_call(request.account, refuser);
}

void CachingAllocator::refuse(const Request& request, OomInfo info, const Account* refuser,
                              const PressureOutcome& outcome) {
  ledger_.count_oom(request.account, refuser);
  info.device = device_;
  info.requested = request.asked;
  info.held = ledger_.held();
  if (refuser == nullptr) {
    if (request.account != nullptr) {
      const Account account = ledger_.read(*request.account);
      info.pool = account.name;
      info.allocated = static_cast<std::size_t>(account.blocks.bytes.current);
    } else {
      info.pool = "default";
      info.allocated = static_cast<std::size_t>(stats().blocks.all.bytes.current);
    }
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
  SmallBlock block{address, &span->tag};
  if (span->state == Span::State::slab) {
    const std::uint32_t index = span->slab->index_of(address);
    if (index >= span->slab->info().blocks || span->slab->block(index) != address) return false;
    block.tag = span->slab->tags() + index;
  } else if (span->address() != address) {
    return false;
  }
  const BlockTag tag = *block.tag;
  if (tag.requested == kFreeTag) return false;
  if (observed_.load(std::memory_order_relaxed)) [[unlikely]] {
    history_.on_free(address);
    recorder_.on_free(address);
  }
  ThreadCache* const mine = cache();
  if (tag.account != 0 || !may_keep(span, mine)) {
    free_slow(span, block, mine);
    return true;
  }
  const CacheGuard guard(mine->lock);
  block.tag->requested = kFreeTag;
  bool is_small = true;
  if (span->state == Span::State::slab) {
    const std::size_t size_class = span->slab->size_class;
    mine->push(size_class, block);
    mine->shards.subtract(true, kSizeClasses[size_class].block_bytes, tag.requested);
  } else {
    const std::size_t bytes = span->bytes;
    is_small = bytes <= kMediumMax;
    mine->shards.subtract(is_small, bytes, span->requested);
    is_small ? mine->push_medium(span) : mine->push_large(span);
  }
  if (mine->shards.is_behind(is_small)) [[unlikely]]
    ledger_.fold(mine->shards);
  return true;
}

// A block of a pool, of an isolated arena, or a large one of another thread. The block goes first, then its charge: a
// retired pool's arena may be gone right after.
void CachingAllocator::free_slow(Span* span, const SmallBlock& block, ThreadCache* mine) noexcept {
  Arena& arena = *span->segment->arena;
  const bool is_slab = span->state == Span::State::slab;
  const std::size_t rounded = is_slab ? span->slab->info().block_bytes : span->bytes;
  const bool is_small = rounded <= kMediumMax;
  const std::size_t asked = is_small ? block.tag->requested : span->requested;
  const std::uint32_t account = block.tag->account;
  if (may_keep(span, mine)) {
    const CacheGuard guard(mine->lock);
    block.tag->requested = kFreeTag;
    if (is_slab) {
      mine->push(span->slab->size_class, block);
    } else {
      is_small ? mine->push_medium(span) : mine->push_large(span);
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
  // Above the soft limit free memory is not kept.
  if (!is_small && ledger_.above_soft_limit()) [[unlikely]] {
    const std::size_t held = ledger_.held();
    const std::size_t soft = ledger_.soft_limit();
    if (held > soft) release(held - soft);
  }
}

std::size_t CachingAllocator::block_bytes(const void* address) noexcept {
  const Span* const span = PageMap::instance().find(address);
  if (span == nullptr) return 0;
  return span->state == Span::State::slab ? span->slab->info().block_bytes : span->bytes;
}

}  // namespace mempool
