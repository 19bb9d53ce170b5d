// An allocation's way from the request to the block, and back.
#include "core/allocator/caching_allocator.h"

#include <utility>

#include "core/allocator/allocation.h"
#include "core/allocator/found_block.h"
#include "core/allocator/policy.h"
#include "core/pages/page_map.h"
#include "core/pages/size_classes.h"

namespace mempool {

CachingAllocator::CachingAllocator(std::string device, std::unique_ptr<PhysicalMemory> memory, const Options& options)
    : parts_(*this, std::move(device), std::move(memory), options) {
  parts_.ledger.set_limit(options.limit);
  parts_.ledger.set_soft_limit(options.soft_limit);
}

CachingAllocator::~CachingAllocator() {
  parts_.caches.recall();
  settle();
  parts_.clocks.wait_for_all();
}

// ---- allocate ----------------------------------------------------------------------------------------------------
//
// A cached block's way there and back takes no lock but the thread's own and touches no shared counter. Whatever is
// rare is left to a function that is called last, so that the way itself saves no registers.

void* CachingAllocator::allocate(std::size_t bytes, StreamId stream) {
  ThreadCache* const mine = parts_.caches.find();
  if (!is_for_cache(mine, stream) || parts_.detours.any()) [[unlikely]]
    return allocate_after_detour(bytes, stream, mine);
  return allocate_cached(*mine, bytes, stream);
}

// Whether a request, charged to the root pool then, may be served by this thread's cache (nullptr: it has none).
inline bool CachingAllocator::is_for_cache(const ThreadCache* mine, StreamId stream) noexcept {
  return mine != nullptr && mine->pools.current() == nullptr && mine->stream() == stream;
}

inline void* CachingAllocator::allocate_cached(ThreadCache& mine, std::size_t bytes, StreamId stream) {
  if (bytes - 1 >= kSmallMax) return allocate_span(mine, bytes, stream);  // 0 too
  const std::size_t size_class = size_class_of(bytes);
  if (!mine.lock.try_lock()) [[unlikely]]
    return allocate_slow(bytes, stream, nullptr);
  SmallBlock block;
  if (!mine.pop(size_class, block)) [[unlikely]] {
    mine.lock.unlock();
    return allocate_slow(bytes, stream, nullptr);
  }
  *block.tag = {static_cast<std::uint32_t>(bytes), 0};
  Shard& shard = mine.shards.small;
  shard.add({kSizeClasses[size_class].block_bytes, bytes});
  if (shard.is_ahead()) [[unlikely]]
    return parts_.caches.settle_and_unlock(mine, true, block.address);
  mine.lock.unlock();
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
    return parts_.caches.settle_and_unlock(mine, size.is_small(), span->address());
  mine.lock.unlock();
  return span->address();
}

// What waits for other streams and could serve the request is looked at first. Nothing of that size waits: the cache
// may serve it still.
void* CachingAllocator::allocate_after_detour(std::size_t bytes, StreamId stream, ThreadCache* mine) {
  if (!parts_.detours.any()) return allocate_slow(bytes, stream, nullptr);
  collect_for(bytes, mine);
  if (is_for_cache(mine, stream) && !parts_.observers.any()) return allocate_cached(*mine, bytes, stream);
  return allocate_slow(bytes, stream, nullptr);
}

void* CachingAllocator::allocate_from(ArenaFamily& family, std::size_t bytes, StreamId stream) {
  collect_for(bytes, nullptr);  // no blocks of that family wait in caches
  return allocate_slow(bytes, stream, &family);
}

void CachingAllocator::collect_for(std::size_t bytes, ThreadCache* mine) noexcept {
  if (bytes > 0 && parts_.detours.has(Detours::waiting)) {
    parts_.collector.collect_for(size_of_request(bytes).rounded, mine);
  }
}

void* CachingAllocator::allocate_slow(std::size_t bytes, StreamId stream, ArenaFamily* family) {
  return bytes > 0 ? Allocation(parts_, size_of_request(bytes), stream, family).run() : nullptr;
}

// ---- free --------------------------------------------------------------------------------------------------------

bool CachingAllocator::deallocate(void* address) noexcept {
  Span* const span = PageMap::instance().find(address);
  if (span == nullptr) [[unlikely]]
    return address == nullptr;
  if (span->state != Span::State::slab) return free_span(span, address);
  Slab& slab = *span->slab;
  const SizeClass& info = slab.info();
  BlockTag* const tag = tag_in_slab(*span, slab, address);
  if (tag == nullptr) [[unlikely]]
    return false;
  const std::uint32_t asked = tag->requested;
  if (asked == kFreeTag) [[unlikely]]
    return false;
  ThreadCache* const mine = parts_.caches.find();
  if (mine == nullptr || tag->account != 0 || !mine->serves(span->home) || parts_.detours.has(Detours::observed) ||
      !mine->lock.try_lock()) [[unlikely]] {
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
    return parts_.caches.ease_and_unlock(*mine, true);
  mine->lock.unlock();
  return true;
}

// Whether a block that is freed may wait in this thread's cache (nullptr: it has none).
inline bool CachingAllocator::may_keep(const Span* span, const ThreadCache* mine) const noexcept {
  if (mine == nullptr || !mine->serves(span->segment->arena)) return false;
  if (span->state == Span::State::slab) return true;
  // Above the soft limit free memory is not kept.
  return (span->bytes <= kMediumMax || span->home == mine) && !parts_.ledger.above_soft_limit();
}

bool CachingAllocator::free_span(Span* span, void* address) noexcept {
  if (span->address() != address || span->tag.requested == kFreeTag) [[unlikely]]
    return false;
  ThreadCache* const mine = parts_.caches.find();
  if (span->tag.account != 0 || parts_.detours.has(Detours::observed) || !may_keep(span, mine) ||
      !mine->lock.try_lock()) [[unlikely]] {
    return free_slow(span, {address, &span->tag});
  }
  const BlockSize size{span->bytes, span->requested};
  span->tag.requested = kFreeTag;
  Shard& shard = mine->shards.of(size.is_small());
  shard.subtract(size);
  mine->push_span(span, size);
  if (shard.is_behind()) [[unlikely]]
    return parts_.caches.ease_and_unlock(*mine, size.is_small());
  mine->lock.unlock();
  return true;
}

// Any block, by any thread. The block goes first, then its charge: a retired pool's arena may be gone right after.
bool CachingAllocator::free_slow(Span* span, SmallBlock block) noexcept {
  ThreadCache* const mine = parts_.caches.obtain();
  const FoundBlock found{span, block.tag};
  const bool is_of_slab = found.is_of_slab();
  const std::uint32_t flags = block.tag->account & kTagFlags;
  if (parts_.observers.any()) [[unlikely]]
    parts_.observers.on_free(found.observed(block.address), (flags & kUsedElsewhere) != 0);
  if ((flags & kExported) != 0) [[unlikely]]
    unpin(block.address);
  if ((flags & kUsedElsewhere) != 0) {
    parts_.collector.defer(found, block.address, mine);
  } else {
    const BlockSize size = found.size();
    const std::uint32_t account = block.tag->account & ~kTagFlags;
    may_keep(span, mine) ? found.keep(block.address, *mine) : found.give_back(block.address);
    parts_.pools.uncharge(account, size, mine, false);
  }
  if (!is_of_slab && parts_.ledger.above_soft_limit()) [[unlikely]] {
    const std::size_t held = parts_.ledger.held();
    const std::size_t soft = parts_.ledger.soft_limit();
    if (held > soft) parts_.arenas.release(held - soft, false);
  }
  return true;
}

bool CachingAllocator::add_use(const void* address, StreamClock& clock) {
  const FoundBlock block = FoundBlock::at(address);
  if (!block.is_found() || !block.is_live()) return false;
  parts_.observers.on_use(address, clock.stream());
  if (&block.arena().pages.clock() == &clock) return true;  // in order anyway
  parts_.collector.add_use(block, address, clock);
  return true;
}

}  // namespace mempool
