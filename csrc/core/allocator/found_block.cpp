#include "core/allocator/found_block.h"

namespace mempool {

void FoundBlock::keep(void* address, ThreadCache& cache) const noexcept {
  MEMPOOL_EXPECTS(cache.serves(&arena()));
  const std::lock_guard guard(cache.lock);
  *tag = {kFreeTag, 0};
  if (is_of_slab()) {
    cache.push_or_give_back(span->slab->size_class, {address, tag});
  } else {
    cache.push_span(span, size());
  }
}

std::size_t block_bytes(const void* address) noexcept {
  const FoundBlock block{PageMap::instance().find(address), nullptr};
  return block.span != nullptr ? block.rounded() : 0;
}

CachingAllocator* owner_of(const void* address) noexcept {
  const Span* const span = PageMap::instance().find(address);
  return span != nullptr ? &span->segment->arena->family.owner : nullptr;
}

BackedRange backed_range_of(const void* block) noexcept {
  const Span* const span = PageMap::instance().find(block);
  if (span == nullptr) return {};
  Arena& arena = *span->segment->arena;
  const std::lock_guard guard(arena.mutex);
  const Span* first = span;
  while (is_backed(first->previous)) first = first->previous;
  const Span* last = span;
  while (is_backed(last->next)) last = last->next;
  return {first->address(), last->end() - first->start, arena.stream(), &arena.family};
}

}  // namespace mempool
