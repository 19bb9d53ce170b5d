// Where blocks lie: for whoever must find them again at the same place, as a captured graph must.
#include "common/align.h"
#include "core/allocator/allocation.h"
#include "core/allocator/caching_allocator.h"
#include "core/allocator/found_block.h"

namespace mempool {
namespace {

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

bool CachingAllocator::is_charged(const Account& pool, const void* address) const noexcept {
  if (owner_of(address) != this) return false;
  const FoundBlock block = FoundBlock::at(address);
  return block.is_found() && block.is_live() && (block.tag->account & ~kTagFlags) == pool.id;
}

std::vector<PlacedBlock> CachingAllocator::live_blocks(const ArenaFamily& family) {
  std::vector<PlacedBlock> out;
  for (Arena* const arena : parts_.arenas.arenas_of(family)) {
    const ArenaGuard guard(arena->mutex);
    for (const Segment* segment = arena->pages.first_segment(); segment != nullptr; segment = segment->next) {
      for (const Span* span = segment->first; span != nullptr; span = span->next)
        append_live(*span, arena->stream(), out);
    }
  }
  return out;
}

bool CachingAllocator::allocate_at(ArenaFamily& family, const PlacedBlock& place) {
  Arena* const arena = parts_.arenas.arena_of(family, place.stream);
  if (arena == nullptr) return false;
  parts_.collector.collect();  // the place may be that of a block which waits for other streams
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
  Allocation(parts_, {place.rounded, place.requested}, place.stream, &family).hand_over(place.address);
  return true;
}

bool CachingAllocator::allocate_exactly(std::size_t bytes, void* address, StreamId stream) {
  const std::size_t rounded = align_up(bytes, kPageBytes);
  if (bytes == 0 || rounded < bytes || reinterpret_cast<std::uintptr_t>(address) % kPageBytes != 0) return false;
  parts_.caches.recall();
  return allocate_at(parts_.arenas.default_family(), {address, rounded, bytes, stream, 0});
}

std::vector<Handle> CachingAllocator::pin_handles(const void* block) {
  const FoundBlock found = FoundBlock::at(block);
  if (!found.is_found()) return {};
  Arena& arena = found.arena();
  const ArenaGuard guard(arena.mutex);
  if (!found.is_live() || arena.pages.asleep()) return {};
  std::vector<Handle> handles = arena.pages.handles_of(*found.span);
  if ((found.tag->account & kExported) == 0) arena.pages.count_pinned(1);
  found.tag->account |= kExported;
  return handles;
}

void CachingAllocator::unpin(void* block) noexcept {
  const FoundBlock found = FoundBlock::at(block);
  if (!found.is_found()) return;
  {
    const ArenaGuard guard(found.arena().mutex);
    if ((found.tag->account & kExported) == 0) return;
    found.tag->account &= ~kExported;
    found.arena().pages.count_pinned(-1);
  }
  if (const UnpinHook hook = unpin_hook_.load(std::memory_order_relaxed)) hook(*this, block);
}

}  // namespace mempool
