// Where blocks lie: for those who must find them again at the same place, as a graph's tensors are.
#include "common/align.h"
#include "core/allocator/caching_allocator.h"
#include "core/pages/page_map.h"

namespace mempool {
namespace {

using ArenaGuard = std::lock_guard<AdaptiveMutex>;
using PlacedBlock = CachingAllocator::PlacedBlock;

void append_live(const Span& span, StreamId stream, std::vector<PlacedBlock>& out) {
  if (span.state == Span::State::block && span.tag.requested != kFreeTag) {
    out.push_back({span.address(), span.bytes, span.requested, stream, 0});
  }
  if (span.state != Span::State::slab) return;
  const Slab& slab = *span.slab;
  for (std::uint32_t i = 0; i < slab.info().blocks; ++i) {
    const std::uint32_t asked = slab.tags()[i].requested;
    if (asked != kFreeTag) out.push_back({slab.block(i), slab.info().block_bytes, asked, stream, span.start});
  }
}

}  // namespace

CachingAllocator* CachingAllocator::owner_of(const void* address) noexcept {
  const Span* const span = PageMap::instance().find(address);
  return span != nullptr ? &span->segment->arena->family.owner : nullptr;
}

bool CachingAllocator::is_charged(const Account& pool, const void* address) const noexcept {
  if (owner_of(address) != this) return false;
  Span* span = nullptr;
  const BlockTag* const tag = find_tag(address, span);
  return tag != nullptr && tag->requested != kFreeTag && (tag->account & ~kTagFlags) == pool.id;
}

CachingAllocator::Range CachingAllocator::range_of(const void* block) noexcept {
  const Span* const span = PageMap::instance().find(block);
  if (span == nullptr) return {};
  Arena& arena = *span->segment->arena;
  const ArenaGuard guard(arena.mutex);
  const Span* first = span;
  while (is_backed(first->previous)) first = first->previous;
  const Span* last = span;
  while (is_backed(last->next)) last = last->next;
  return {first->address(), last->end() - first->start, arena.stream(), &arena.family};
}

std::vector<PlacedBlock> CachingAllocator::live_blocks(const ArenaFamily& family) {
  std::vector<PlacedBlock> out;
  for (Arena* const arena : arenas_of(family)) {
    const ArenaGuard guard(arena->mutex);
    for (const Segment* segment = arena->pages.first_segment(); segment != nullptr; segment = segment->next) {
      for (const Span* span = segment->first; span != nullptr; span = span->next)
        append_live(*span, arena->stream(), out);
    }
  }
  return out;
}

bool CachingAllocator::allocate_at(ArenaFamily& family, const PlacedBlock& place) {
  Arena* const arena = arena_of(family, place.stream);
  if (arena == nullptr) return false;
  const auto start = reinterpret_cast<std::uintptr_t>(place.address);
  {
    const ArenaGuard guard(arena->mutex);
    if (arena->pages.asleep()) return false;
    if (place.slab != 0) {
      const SmallBlock block = arena->slabs.allocate_at(size_class_of(place.rounded), place.slab, start);
      if (block.address == nullptr) return false;
      *block.tag = {static_cast<std::uint32_t>(place.requested), 0};
    } else {
      Span* const span = arena->pages.allocate_at(start, place.rounded);
      if (span == nullptr) return false;
      span->hand_out(place.requested, 0, nullptr);
    }
  }
  confirm({.size = {place.rounded, place.requested},
           .account = nullptr,
           .cache = cache(),
           .stream = place.stream,
           .family = &family,
           .arena = arena});
  return true;
}

bool CachingAllocator::allocate_exactly(std::size_t bytes, void* address, StreamId stream) {
  const std::size_t rounded = align_up(bytes, kPageBytes);
  if (bytes == 0 || rounded < bytes || reinterpret_cast<std::uintptr_t>(address) % kPageBytes != 0) return false;
  recall();
  return allocate_at(*default_family_, {address, rounded, bytes, stream, 0});
}

std::vector<Handle> CachingAllocator::pin_handles(const void* block) {
  Span* span = nullptr;
  BlockTag* const tag = find_tag(block, span);
  if (tag == nullptr) return {};
  Arena& arena = *span->segment->arena;
  const ArenaGuard guard(arena.mutex);
  if (tag->requested == kFreeTag || arena.pages.asleep()) return {};
  std::vector<Handle> handles = arena.pages.handles_of(*span);
  if ((tag->account & kExported) == 0) arena.pages.count_pinned(1);
  tag->account |= kExported;
  return handles;
}

void CachingAllocator::unpin(void* block) noexcept {
  Span* span = nullptr;
  BlockTag* const tag = find_tag(block, span);
  if (tag == nullptr) return;
  {
    Arena& arena = *span->segment->arena;
    const ArenaGuard guard(arena.mutex);
    if ((tag->account & kExported) == 0) return;
    tag->account &= ~kExported;
    arena.pages.count_pinned(-1);
  }
  if (const UnpinHook hook = unpin_hook_.load(std::memory_order_relaxed)) hook(*this, block);
}

}  // namespace mempool
