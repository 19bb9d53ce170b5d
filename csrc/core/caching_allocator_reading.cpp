// Statistics, snapshots and checks: whatever looks at the whole allocator at one moment.
#include <algorithm>
#include <vector>

#include "core/caching_allocator.h"

namespace mempool {
namespace {

void append_slab(const Span& span, std::vector<SnapshotBlock>& out) {
  const Slab& slab = *span.slab;
  const std::size_t size = slab.info().block_bytes;
  for (std::uint32_t i = 0; i < slab.info().blocks; ++i) {
    const BlockTag& tag = slab.tags()[i];
    const bool live = tag.requested != kFreeTag;
    out.push_back({span.start + i * size, size, live ? tag.requested : 0, tag.account, live});
  }
  if (const std::size_t used = size * slab.info().blocks; used < span.bytes) {
    out.push_back({span.start + used, span.bytes - used, 0, 0, false});  // the tail that no block fits
  }
}

void append_span(const Span& span, std::vector<SnapshotBlock>& out) {
  if (span.state == Span::State::slab) {
    append_slab(span, out);
    return;
  }
  const bool live = span.state == Span::State::block && span.tag.requested != kFreeTag;
  out.push_back({span.start, span.bytes, live ? span.requested : 0, live ? span.tag.account : 0, live});
}

void append_arena(const Arena& arena, std::size_t number, std::vector<SnapshotSegment>& out) {
  for (const Segment* segment = arena.pages.first_segment(); segment != nullptr; segment = segment->next) {
    bool open = false;
    for (const Span* span = segment->first; span != nullptr; span = span->next) {
      const bool backed = span->state != Span::State::hole;
      if (backed && !open) out.push_back({span->start, 0, arena.name, number, {}});
      open = backed;
      if (!backed) continue;
      out.back().bytes += span->bytes;
      append_span(*span, out.back().blocks);
    }
  }
}

}  // namespace

DeviceStats CachingAllocator::stats() {
  AllCaches caches(slot_);
  caches.for_each([this](ThreadCache& cache) { ledger_.fold(cache.shards); });
  DeviceStats out = ledger_.read_stats();
  const std::lock_guard guard(arenas_mutex_);
  out.free_ranges.absorb(retired_ranges_);
  const auto collect = [&out](Arena& arena) {
    const std::lock_guard arena_guard(arena.mutex);
    out.free_ranges.absorb(arena.pages.free_ranges());
  };
  collect(*default_arena_);
  for (const auto& arena : isolated_) collect(*arena);
  return out;
}

namespace {
void reset(Arena& arena, void (*action)(Stat&)) {
  const std::lock_guard guard(arena.mutex);
  arena.pages.free_ranges().count.for_each(action);
  arena.pages.free_ranges().bytes.for_each(action);
}
}  // namespace

void CachingAllocator::reset(void (*action)(Stat&)) {
  AllCaches caches(slot_);
  caches.for_each([this](ThreadCache& cache) { ledger_.fold(cache.shards); });
  ledger_.reset(action);
  const std::lock_guard guard(arenas_mutex_);
  retired_ranges_.count.for_each(action);
  retired_ranges_.bytes.for_each(action);
  mempool::reset(*default_arena_, action);
  for (const auto& arena : isolated_) mempool::reset(*arena, action);
}

Snapshot CachingAllocator::snapshot() {
  Snapshot out;
  const AllCaches caches(slot_);
  const std::lock_guard guard(arenas_mutex_);
  std::size_t number = 0;
  const auto collect = [&](Arena& arena) {
    const std::lock_guard arena_guard(arena.mutex);
    append_arena(arena, number++, out.segments);
  };
  collect(*default_arena_);
  for (const auto& arena : isolated_) collect(*arena);
  // A block that was live above may be gone by now, but then its free has not been charged off yet or its pool's name
  // is not needed: names are read while the caches, through which every free goes, are still held.
  for (const SnapshotSegment& segment : out.segments) {
    for (const SnapshotBlock& block : segment.blocks) {
      if (!block.live || out.pools.contains(block.account)) continue;
      out.pools.emplace(block.account, ledger_.name_of(block.account));
    }
  }
  return out;
}

std::string CachingAllocator::check_invariants() {
  std::size_t live = 0;
  std::size_t backed = 0;
  for (const SnapshotSegment& segment : snapshot().segments) {
    backed += segment.bytes;
    for (const SnapshotBlock& block : segment.blocks) live += block.live ? block.bytes : 0;
  }
  if (live != static_cast<std::size_t>(stats().blocks.all.bytes.current)) return "allocated bytes against live blocks";
  if (backed != ledger_.held()) return "held bytes against backed segments";
  return check_structure();
}

std::string CachingAllocator::check_structure() {
  const std::lock_guard guard(arenas_mutex_);
  const auto check = [](Arena& arena) {
    const std::lock_guard arena_guard(arena.mutex);
    return arena.check_invariants();
  };
  std::string broken = check(*default_arena_);
  for (auto it = isolated_.begin(); broken.empty() && it != isolated_.end(); ++it) broken = check(**it);
  return broken;
}

}  // namespace mempool
