// An allocation's way from the request to the block, and back.
#include "core/allocator/caching_allocator.h"

#include <memory>
#include <utility>

#include "core/allocator/policy.h"
#include "core/pages/page_map.h"

namespace mempool {
namespace {

using CacheGuard = std::lock_guard<OwnerLock>;
using ArenaGuard = std::lock_guard<AdaptiveMutex>;

}  // namespace

// ---- allocate ----------------------------------------------------------------------------------------------------
//
// A cached block's way there and back takes no lock but the thread's own and touches no shared counter. Whatever is
// rare is left to a function that is called last, so that the way itself saves no registers.

void* CachingAllocator::allocate(std::size_t bytes, StreamId stream) {
  ThreadCache* const mine = ThreadRegistry::find(slot_);
  if (mine == nullptr || mine->pools.current() != nullptr || mine->stream() != stream || observers_.any()) [[unlikely]]
    return allocate_slow(bytes, stream, nullptr);
  if (bytes - 1 >= kSmallMax) return allocate_span(*mine, bytes, stream);  // 0 too
  const std::size_t size_class = size_class_of(bytes);
  if (!mine->lock.try_lock()) [[unlikely]]
    return allocate_slow(bytes, stream, nullptr);
  SmallBlock block;
  if (!mine->pop(size_class, block)) [[unlikely]] {
    mine->lock.unlock();
    return allocate_slow(bytes, stream, nullptr);
  }
  *block.tag = {static_cast<std::uint32_t>(bytes), 0};
  Shard& shard = mine->shards.small;
  shard.add({kSizeClasses[size_class].block_bytes, bytes});
  if (shard.is_ahead()) [[unlikely]]
    return settle_and_unlock(*mine, true, block.address);
  mine->lock.unlock();
  return block.address;
}

void* CachingAllocator::allocate_span(ThreadCache& mine, std::size_t bytes, StreamId stream) {
  if (bytes - 1 >= kLargestRequest) return allocate_slow(bytes, stream, nullptr);
  const BlockSize size{round_block(bytes), bytes};
  if (!mine.lock.try_lock()) [[unlikely]]
    return allocate_slow(bytes, stream, nullptr);
  Span* const span = mine.pop_span(size);
  if (span == nullptr) [[unlikely]] {
    mine.lock.unlock();
    return allocate_slow(bytes, stream, nullptr);
  }
  span->hand_out(bytes, 0, &mine);
  Shard& shard = mine.shards.of(size.is_small());
  shard.add(size);
  if (shard.is_ahead()) [[unlikely]]
    return settle_and_unlock(mine, size.is_small(), span->address());
  mine.lock.unlock();
  return span->address();
}

void* CachingAllocator::settle_and_unlock(ThreadCache& mine, bool is_small, void* address) noexcept {
  const bool settled = ledger_.settle(mine.shards, is_small);
  mine.lock.unlock();
  if (!settled) fold_for_peak(&mine);
  return address;
}

void* CachingAllocator::allocate_from(ArenaFamily& family, std::size_t bytes, StreamId stream) {
  return allocate_slow(bytes, stream, &family);
}

class CachingAllocator::Keep {
 public:
  explicit Keep(CachingAllocator& allocator) : allocator_(allocator) {}
  Keep(const Keep&) = delete;
  Keep& operator=(const Keep&) = delete;
  ~Keep() {
    if (account_ == nullptr) [[likely]]
      return;
    if (Account* const done = allocator_.accounts_.release(account_)) allocator_.retire(done);
  }
  // Precondition: something else keeps it at this moment.
  void take(Account* account) {
    if (account_ != nullptr || account == nullptr) return;
    allocator_.accounts_.keep(account);
    account_ = account;
  }

 private:
  CachingAllocator& allocator_;
  Account* account_ = nullptr;
};

void* CachingAllocator::allocate_slow(std::size_t bytes, StreamId stream, ArenaFamily* family) {
  if (bytes == 0) return nullptr;
  ThreadCache* const mine = cache();
  Keep keep(*this);
  PressureOutcome outcome;
  Request request{{bytes <= kLargestRequest ? round_block(bytes) : 0, bytes}, nullptr, mine, stream, family};
  Ledger::Charge charge = reserve_current(request, keep);
  if (family == nullptr) request.family = &family_of(request.account);
  if (request.size.rounded == 0) refuse(request, {.reason = OomReason::size_overflow}, nullptr, outcome);
  request.arena = arena_of(*request.family, stream);
  if (request.arena == nullptr) {
    let_go(request, charge, keep);
    refuse(request, {.reason = OomReason::metadata_refused}, nullptr, outcome);
  }
  if (mine != nullptr) serve_stream(*mine, request);
  Effort effort = Effort::none;
  while (true) {
    if (charge.outcome != Ledger::Charge::Outcome::charged) [[unlikely]]
      insist(request, charge);
    Refusal why = Refusal::none;
    void* const address = obtain(request, why);
    if (address != nullptr) {
      if (effort != Effort::none) ledger_.count_retry();
      if (observers_.any()) observers_.on_alloc(address, request.size, request.account_id(), stream, &capture_stack);
      confirm(request);
      return address;
    }
    // While more room is sought, callbacks included, this request stands in nobody's way.
    let_go(request, {}, keep);
    if (why == Refusal::asleep) {
      throw PoolAsleepError("mempool: pool '" + accounts_.name_of(request.account_id()) +
                            "' is asleep: wake() it before it takes new blocks.");
    }
    make_room(request, why, effort, outcome);
    charge = ledger_.reserve(request.account, request.size.rounded);
  }
}

// The opposite of a reservation: its pool stays alive for this request.
void CachingAllocator::let_go(const Request& request, const Ledger::Charge& charge, Keep& keep) {
  if (request.account == nullptr || charge.outcome != Ledger::Charge::Outcome::charged) return;
  keep.take(request.account);
  ledger_.cancel(request.account, request.size.rounded);
}

// A thread that goes over to another stream takes its cache along.
void CachingAllocator::serve_stream(ThreadCache& mine, const Request& request) noexcept {
  if (!request.family->is_thread_cached) return;
  if (mine.stream() == request.stream) {
    mine.strange_requests = 0;
  } else if (++mine.strange_requests > kStrangers) {
    const CacheGuard guard(mine.lock);
    mine.serve(*request.arena);
    mine.strange_requests = 0;
  }
}

// Finds out which pool the thread is in and holds a place there, in one step: another thread may end the stay at any
// moment, and the pool with it. The reserved bytes keep the pool, or else `keep` does.
Ledger::Charge CachingAllocator::reserve_current(Request& request, Keep& keep) {
  Ledger::Charge result;
  if (request.cache == nullptr) return result;
  const CacheGuard guard(request.cache->lock);
  request.account = request.cache->pools.current();
  if (request.account == nullptr) return result;
  if (request.size.rounded == 0) {
    keep.take(request.account);
    return result;
  }
  result = ledger_.reserve(request.account, request.size.rounded);
  if (result.outcome != Ledger::Charge::Outcome::charged) keep.take(request.account);
  return result;
}

// A limit has refused, or a pool is closed: holds a place after the pressure callbacks, or throws.
void CachingAllocator::insist(const Request& request, Ledger::Charge result) {
  PressureOutcome outcome;
  for (bool pressed = false; result.outcome != Ledger::Charge::Outcome::charged; pressed = true) {
    if (result.outcome == Ledger::Charge::Outcome::closed) {
      throw PoolClosedError("mempool: pool '" + result.pool->name + "' is closed: it takes no new blocks.");
    }
    if (!pressed) press(request, result.pool, request.size.rounded - (result.limit - result.allocated), true, outcome);
    if (pressed || outcome.calls == 0) {
      refuse(request,
             {.reason = OomReason::pool_limit,
              .pool = result.pool->name,
              .allocated = result.allocated,
              .limit = result.limit},
             result.pool, outcome);
    }
    result = ledger_.reserve(request.account, request.size.rounded);
  }
  if (outcome.calls > 0) ledger_.count_retry();
}

// Counts the block that was found. Soft limits speak up here: the allocation has succeeded whatever their callbacks do.
void CachingAllocator::confirm(const Request& request) {
  Ledger::Charge result;
  if (request.account == nullptr && request.cache != nullptr) {  // as on the fast way, so that it can lease room
    ThreadCache& mine = *request.cache;
    mine.lock.lock();
    Shard& shard = mine.shards.of(request.size.is_small());
    shard.add(request.size);
    if (shard.is_ahead()) {
      settle_and_unlock(mine, request.size.is_small(), nullptr);
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
      result = ledger_.confirm(request.account, request.size,
                               request.cache != nullptr ? &request.cache->shards : nullptr, force);
    }
    if (result.outcome != Ledger::Charge::Outcome::unsettled) break;
    fold_for_peak(nullptr);
  }
  return result;
}

void CachingAllocator::uncharge(std::uint32_t account_id, const BlockSize& size, ThreadCache* mine,
                                bool waits) noexcept {
  AccountRegistry::Ended ended;
  if (mine != nullptr) {
    const CacheGuard guard(mine->lock);
    if (account_id == 0 && !waits) {
      Shard& shard = mine->shards.of(size.is_small());
      shard.subtract(size);
      if (shard.is_behind()) ledger_.fold(mine->shards);
    } else {
      ended = ledger_.uncharge(account_id, size, &mine->shards, waits);
    }
  } else {
    ended = ledger_.uncharge(account_id, size, nullptr, waits);
  }
  end(ended);
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
  if (mine == nullptr || tag->account != 0 || !mine->serves(span->home) || observers_.any() || !mine->lock.try_lock())
      [[unlikely]] {
    return free_slow(span, {address, tag});
  }
  if (!mine->push(slab.size_class, {address, tag})) [[unlikely]] {
    mine->lock.unlock();
    return free_slow(span, {address, tag});
  }
  tag->requested = kFreeTag;
  Shard& shard = mine->shards.small;
  shard.subtract({info.block_bytes, asked});
  if (shard.is_behind()) [[unlikely]]
    return fold_and_unlock(*mine);
  mine->lock.unlock();
  return true;
}

bool CachingAllocator::free_span(Span* span, void* address) noexcept {
  if (span->address() != address || span->tag.requested == kFreeTag) [[unlikely]]
    return false;
  ThreadCache* const mine = ThreadRegistry::find(slot_);
  if (span->tag.account != 0 || observers_.any() || !may_keep(span, mine) || !mine->lock.try_lock()) [[unlikely]] {
    return free_slow(span, {address, &span->tag});
  }
  const BlockSize size{span->bytes, span->requested};
  span->tag.requested = kFreeTag;
  Shard& shard = mine->shards.of(size.is_small());
  shard.subtract(size);
  mine->push_span(span);
  if (shard.is_behind()) [[unlikely]]
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
  observers_.on_free(block.address);
  ThreadCache* const mine = cache();
  const bool is_slab = span->state == Span::State::slab;
  const BlockSize size = is_slab ? BlockSize{span->slab->info().block_bytes, block.tag->requested}
                                 : BlockSize{span->bytes, span->requested};
  const std::uint32_t account = block.tag->account & ~kTagFlags;
  const std::uint32_t flags = block.tag->account & kTagFlags;
  if ((flags & kExported) != 0) [[unlikely]]
    unpin(block.address);
  if ((flags & kUsedElsewhere) != 0) {
    defer(span, block, size, account, mine);
  } else {
    if (may_keep(span, mine)) {
      const CacheGuard guard(mine->lock);
      *block.tag = {kFreeTag, 0};
      if (is_slab) {
        mine->push_or_give_back(span->slab->size_class, block);
      } else {
        mine->push_span(span);
      }
    } else {
      give_back(span, block);
    }
    uncharge(account, size, mine, false);
  }
  if (!is_slab && ledger_.above_soft_limit()) [[unlikely]] {
    const std::size_t held = ledger_.held();
    const std::size_t soft = ledger_.soft_limit();
    if (held > soft) release(held - soft, false);
  }
  return true;
}

// Returns a block to its arena.
void CachingAllocator::give_back(Span* span, const SmallBlock& block) noexcept {
  Arena& arena = *span->segment->arena;
  const ArenaGuard guard(arena.mutex);
  if (span->state == Span::State::slab) {
    arena.slabs.free(block);
  } else {
    span->tag = {kFreeTag, 0};
    arena.pages.free(span);
  }
}

// A block is freed that other streams use: it waits for them. Its charge goes before another thread can collect it.
void CachingAllocator::defer(Span* span, const SmallBlock& block, const BlockSize& size, std::uint32_t account,
                             ThreadCache* mine) noexcept {
  {
    const ArenaGuard guard(span->segment->arena->mutex);  // a snapshot reads tags
    *block.tag = {kFreeTag, kUsedElsewhere};
  }
  accounts_.keep_for_block(account);
  uncharge(account, size, mine, true);
  if (deferred_.defer(span, block, size, account)) return;
  ledger_.end_waiting(size);
  give_back(span, block);
  end(accounts_.release_block(account));
}

void CachingAllocator::collect() noexcept {
  if (deferred_.empty() || !collecting_.try_lock()) return;
  give_back_collected();
  collecting_.unlock();
}

void CachingAllocator::collect_all() noexcept {
  const std::lock_guard guard(collecting_);
  give_back_collected();
}

void CachingAllocator::give_back_collected() noexcept {
  for (DeferredFrees::Block* block = deferred_.collect(); block != nullptr;) {
    const std::unique_ptr<DeferredFrees::Block> done(std::exchange(block, block->next));
    ledger_.end_waiting(done->size);
    if (const CompletionHook hook = completion_hook_.load(std::memory_order_relaxed)) {
      const Arena& arena = *done->span->segment->arena;
      hook(*this, done->block.address, done->size.rounded, arena.stream(), arena.family);
    }
    give_back(done->span, done->block);
    end(accounts_.release_block(done->account));
  }
}

BlockTag* CachingAllocator::find_tag(const void* address, Span*& span) noexcept {
  span = PageMap::instance().find(address);
  if (span == nullptr) return nullptr;
  if (span->state != Span::State::slab) return span->address() == address ? &span->tag : nullptr;
  const SizeClass& info = span->slab->info();
  const auto offset = static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(address) - span->start);
  const std::uint32_t index = index_in_slab(info, offset);
  return index < info.blocks && begins_block(info, offset) ? span->slab->tags() + index : nullptr;
}

bool CachingAllocator::is_used_elsewhere(const void* address) noexcept {
  Span* span = nullptr;
  const BlockTag* const tag = find_tag(address, span);
  return tag != nullptr && (tag->account & kUsedElsewhere) != 0;
}

bool CachingAllocator::add_use(const void* address, StreamId stream) { return add_use(address, clocks_.of(stream)); }

bool CachingAllocator::add_use(const void* address, StreamClock& clock) {
  Span* span = nullptr;
  BlockTag* const tag = find_tag(address, span);
  if (tag == nullptr) return false;
  if (tag->requested == kFreeTag) return false;
  observers_.on_use(address, clock.stream());
  if (&span->segment->arena->pages.clock() == &clock) return true;  // in order anyway
  deferred_.add_use(address, clock);
  const ArenaGuard guard(span->segment->arena->mutex);  // a snapshot reads tags
  tag->account |= kUsedElsewhere;
  return true;
}

std::size_t CachingAllocator::block_bytes(const void* address) noexcept {
  const Span* const span = PageMap::instance().find(address);
  if (span == nullptr) return 0;
  return span->state == Span::State::slab ? span->slab->info().block_bytes : span->bytes;
}

}  // namespace mempool
