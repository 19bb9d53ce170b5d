// The block that begins at an address: its records, its size and its arena, by the page map.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>

#include "common/expects.h"
#include "core/accounts/block_size.h"
#include "core/observe/block_listener.h"
#include "core/pages/arena.h"
#include "core/pages/page_map.h"
#include "core/threads/thread_cache.h"

namespace mempool {

static_assert(kSmallPoolMax == kMediumMax, "torch divides its pools where shared granules end");

// The tag of the block that begins at the address, in the slab of that span; nullptr: none does.
inline BlockTag* tag_in_slab(const Span& span, Slab& slab, const void* address) noexcept {
  const SizeClass& info = slab.info();
  const auto offset = static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(address) - span.start);
  const std::uint32_t index = index_in_slab(info, offset);
  return index < info.blocks && begins_block(info, offset) ? slab.tags() + index : nullptr;
}

struct FoundBlock {
  Span* span = nullptr;
  BlockTag* tag = nullptr;  // nullptr: no block begins there

  static FoundBlock at(const void* address) noexcept {
    Span* const span = PageMap::instance().find(address);
    if (span == nullptr) return {};
    if (span->state == Span::State::slab) return {span, tag_in_slab(*span, *span->slab, address)};
    return {span, span->address() == address ? &span->tag : nullptr};
  }

  // The others expect that a block was found.
  bool is_found() const noexcept { return tag != nullptr; }
  bool is_live() const noexcept {
    MEMPOOL_EXPECTS(is_found());
    return tag->requested != kFreeTag;
  }
  bool is_of_slab() const noexcept { return span->state == Span::State::slab; }
  std::size_t rounded() const noexcept { return is_of_slab() ? span->slab->info().block_bytes : span->bytes; }
  BlockSize size() const noexcept { return {rounded(), is_of_slab() ? tag->requested : span->requested}; }
  Arena& arena() const noexcept { return *span->segment->arena; }
  // As listeners see it while it is live.
  ObservedBlock observed(void* address) const noexcept {
    return {address, size(), tag->account & ~kTagFlags, arena().stream(), &arena().family};
  }

  // The block waits in the calling thread's cache from now on. Expects that the cache serves its arena.
  void keep(void* address, ThreadCache& cache) const noexcept;
  // Returns the block to its arena.
  void give_back(void* address) const noexcept {
    const std::lock_guard guard(arena().mutex);
    if (is_of_slab()) {
      arena().slabs.free({address, tag});
    } else {
      span->tag = {kFreeTag, 0};
      arena().pages.free(span);
    }
  }
};

// ---- what an address tells, of whichever allocator of the process
// Bytes charged for a live block; 0 when the address is not one.
std::size_t block_bytes(const void* address) noexcept;
// Whose block begins at the address; nullptr: no allocator's.
CachingAllocator* owner_of(const void* address) noexcept;
// The contiguous backed range around a block, and which stream it belongs to.
struct BackedRange {
  void* address = nullptr;
  std::size_t bytes = 0;
  StreamId stream = 0;
  const ArenaFamily* family = nullptr;
};
BackedRange backed_range_of(const void* block) noexcept;

}  // namespace mempool
