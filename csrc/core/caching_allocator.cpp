// An allocation's way from the request to the block, and back.
#include "core/caching_allocator.h"

#include "core/page_map.h"

namespace mempool {
namespace {

using CacheGuard = std::lock_guard<OwnerLock>;
using ArenaGuard = std::lock_guard<AdaptiveMutex>;

// Larger requests could not be rounded, or would pass the 48 bits of address that the page map knows.
constexpr std::size_t kLargestRequest = std::size_t{1} << 47;

}  // namespace

// ---- allocate ----------------------------------------------------------------------------------------------------
//
// A cached block's way there and back takes no lock but the thread's own and touches no shared counter. Whatever is
// rare is left to a function that is called last, so that the way itself saves no registers.

void* CachingAllocator::allocate(std::size_t bytes) {
  ThreadCache* const mine = ThreadRegistry::find(slot_);
  if (mine == nullptr || mine->current != nullptr || observed_.load(std::memory_order_relaxed)) [[unlikely]]
    return allocate_slow(bytes);
  if (bytes - 1 >= kSmallMax) return allocate_span(*mine, bytes);  // 0 too
  const std::size_t size_class = size_class_of(bytes);
  if (!mine->lock.try_lock()) [[unlikely]]
    return allocate_slow(bytes);
  SmallBlock block;
  if (!mine->pop(size_class, block)) [[unlikely]] {
    mine->lock.unlock();
    return allocate_slow(bytes);
  }
  *block.tag = {static_cast<std::uint32_t>(bytes), 0};
  mine->shards.add(true, kSizeClasses[size_class].block_bytes, bytes);
  if (mine->shards.is_ahead(true)) [[unlikely]]
    return settle_and_unlock(*mine, true, block.address);
  mine->lock.unlock();
  return block.address;
}

void* CachingAllocator::allocate_span(ThreadCache& mine, std::size_t bytes) {
  if (bytes - 1 >= kLargestRequest) return allocate_slow(bytes);
  const std::size_t rounded = round_block(bytes);
  const bool is_small = rounded <= kMediumMax;
  if (!mine.lock.try_lock()) [[unlikely]]
    return allocate_slow(bytes);
  Span* const span = is_small ? mine.pop_medium(rounded) : mine.pop_large(rounded);
  if (span == nullptr) [[unlikely]] {
    mine.lock.unlock();
    return allocate_slow(bytes);
  }
  span->hand_out(bytes, 0, &mine);
  mine.shards.add(is_small, rounded, bytes);
  if (mine.shards.is_ahead(is_small)) [[unlikely]]
    return settle_and_unlock(mine, is_small, span->address());
  mine.lock.unlock();
  return span->address();
}

void* CachingAllocator::settle_and_unlock(ThreadCache& mine, bool is_small, void* address) noexcept {
  const bool settled = ledger_.settle(mine.shards, is_small);
  mine.lock.unlock();
  if (!settled) fold_for_peak(&mine);
  return address;
}

void* CachingAllocator::allocate_slow(std::size_t bytes) {
  if (bytes == 0) return nullptr;
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
  if (request.account == nullptr && request.cache != nullptr) {  // as on the fast way, so that it can lease room
    ThreadCache& mine = *request.cache;
    mine.lock.lock();
    mine.shards.add(request.is_small, request.rounded, request.asked);
    if (mine.shards.is_ahead(request.is_small)) {
      settle_and_unlock(mine, request.is_small, nullptr);
    } else {
      mine.lock.unlock();
    }
  } else {
    result = charge(request);
  }
  if (result.soft_over > 0) {
    PressureOutcome outcome;
    press(request, result.pool, result.soft_over, false, outcome);
  }
  if (ledger_.take_soft_crossing()) after_growth(request);
}

Ledger::Charge CachingAllocator::charge(const Request& request) noexcept {
  Ledger::Charge result;
  for (const bool force : {false, true}) {
    {
      std::unique_lock<OwnerLock> guard;
      if (request.cache != nullptr) guard = std::unique_lock(request.cache->lock);
      result = ledger_.confirm(request.account, request.is_small, request.rounded, request.asked,
                               request.cache != nullptr ? &request.cache->shards : nullptr, force);
    }
    if (result.outcome != Ledger::Charge::Outcome::unsettled) break;
    fold_for_peak(nullptr);
  }
  return result;
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

// ---- free --------------------------------------------------------------------------------------------------------

bool CachingAllocator::deallocate(void* address) noexcept {
  Span* const span = PageMap::instance().find(address);
  if (span == nullptr) [[unlikely]]
    return address == nullptr;
  if (span->state != Span::State::slab) return free_span(span, address);
  Slab& slab = *span->slab;
  const SizeClass& info = slab.info();
  const auto offset = static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(address) - span->start);
  const std::uint32_t index = index_in_slab(info, offset);
  if (index >= info.blocks || !begins_block(info, offset)) [[unlikely]]
    return false;
  BlockTag* const tag = slab.tags() + index;
  const std::uint32_t asked = tag->requested;
  if (asked == kFreeTag) [[unlikely]]
    return false;
  ThreadCache* const mine = ThreadRegistry::find(slot_);
  if (mine == nullptr || tag->account != 0 || observed_.load(std::memory_order_relaxed) || !mine->lock.try_lock())
      [[unlikely]] {
    return free_slow(span, {address, tag});
  }
  if (!mine->push(slab.size_class, {address, tag})) [[unlikely]] {
    mine->lock.unlock();
    return free_slow(span, {address, tag});
  }
  tag->requested = kFreeTag;
  mine->shards.subtract(true, info.block_bytes, asked);
  if (mine->shards.is_behind(true)) [[unlikely]]
    return fold_and_unlock(*mine);
  mine->lock.unlock();
  return true;
}

bool CachingAllocator::free_span(Span* span, void* address) noexcept {
  if (span->address() != address || span->tag.requested == kFreeTag) [[unlikely]]
    return false;
  ThreadCache* const mine = ThreadRegistry::find(slot_);
  if (span->tag.account != 0 || observed_.load(std::memory_order_relaxed) || !may_keep(span, mine) ||
      !mine->lock.try_lock()) [[unlikely]] {
    return free_slow(span, {address, &span->tag});
  }
  const bool is_small = span->bytes <= kMediumMax;
  span->tag.requested = kFreeTag;
  mine->shards.subtract(is_small, span->bytes, span->requested);
  is_small ? mine->push_medium(span) : mine->push_large(span);
  if (mine->shards.is_behind(is_small)) [[unlikely]]
    return fold_and_unlock(*mine);
  mine->lock.unlock();
  return true;
}

bool CachingAllocator::fold_and_unlock(ThreadCache& mine) noexcept {
  ledger_.fold(mine.shards);
  mine.lock.unlock();
  return true;
}

// Any block, by any thread. The block goes first, then its charge: a retired pool's arena may be gone right after.
bool CachingAllocator::free_slow(Span* span, SmallBlock block) noexcept {
  if (observed_.load(std::memory_order_relaxed)) {
    history_.on_free(block.address);
    recorder_.on_free(block.address);
  }
  ThreadCache* const mine = cache();
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
      mine->push_or_give_back(span->slab->size_class, block);
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
  if (!is_slab && ledger_.above_soft_limit()) [[unlikely]] {
    const std::size_t held = ledger_.held();
    const std::size_t soft = ledger_.soft_limit();
    if (held > soft) release(held - soft);
  }
  return true;
}

std::size_t CachingAllocator::block_bytes(const void* address) noexcept {
  const Span* const span = PageMap::instance().find(address);
  if (span == nullptr) return 0;
  return span->state == Span::State::slab ? span->slab->info().block_bytes : span->bytes;
}

}  // namespace mempool
