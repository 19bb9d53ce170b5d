// Statistics, snapshots and checks: whatever looks at the whole allocator at one moment.
#include <vector>

#include "core/allocator/caching_allocator.h"
#include "core/allocator/policy.h"

namespace mempool {
namespace {

SnapshotBlock picture(std::uintptr_t address, std::size_t bytes, const BlockTag& tag, std::size_t requested) {
  const bool live = tag.requested != kFreeTag;
  const bool waiting = !live && (tag.account & kUsedElsewhere) != 0;
  return {address, bytes, live ? requested : 0, live ? tag.account & ~kTagFlags : 0, live, waiting};
}

void append_slab(const Span& span, std::vector<SnapshotBlock>& out) {
  const Slab& slab = *span.slab;
  const std::size_t size = slab.info().block_bytes;
  for (std::uint32_t i = 0; i < slab.info().blocks; ++i) {
    const BlockTag& tag = slab.tags()[i];
    out.push_back(picture(span.start + i * size, size, tag, tag.requested));
  }
  if (const std::size_t used = size * slab.info().blocks; used < span.bytes) {
    out.push_back({span.start + used, span.bytes - used});  // the tail that no block fits
  }
}

void append_span(const Span& span, std::vector<SnapshotBlock>& out) {
  if (span.state == Span::State::slab) {
    append_slab(span, out);
    return;
  }
  const BlockTag tag = span.state == Span::State::block ? span.tag : BlockTag{kFreeTag, 0};
  out.push_back(picture(span.start, span.bytes, tag, span.requested));
}

void append_arena(const Arena& arena, std::size_t number, Snapshot& out) {
  for (const Segment* segment = arena.pages.first_segment(); segment != nullptr; segment = segment->next) {
    bool open = false;
    for (const Span* span = segment->first; span != nullptr; span = span->next) {
      const bool backed = span->is_backed();
      if (backed && !open) {
        const ArenaFamily& family = arena.family;
        out.segments.push_back({span->start, 0, family.name, number, arena.stream(), family.framework_id,
                                !family.has_own_memory(), arena.pages.asleep(), out.blocks.size(), 0});
      }
      open = backed;
      if (!backed) continue;
      SnapshotSegment& current = out.segments.back();
      current.bytes += span->bytes;
      append_span(*span, out.blocks);
      current.block_count = out.blocks.size() - current.first_block;
    }
  }
}

SnapshotSums sums_of(std::span<const SnapshotBlock> blocks) {
  SnapshotSums sums;
  for (const SnapshotBlock& block : blocks) {
    sums.allocated += block.live ? block.bytes : 0;
    sums.active += block.live || block.waiting ? block.bytes : 0;
    sums.requested += block.requested;
    sums.is_large |= block.bytes > kSmallPoolMax;
  }
  return sums;
}

// Every thread that allocates waits while a snapshot is taken. So fresh memory for its records, which takes longest, is
// had before: for the blocks that are live now, as many free ones in slabs, and some that come meanwhile.
void make_room(const DeviceStats& now, Snapshot& out) {
  const auto blocks = static_cast<std::size_t>(now.blocks.all.count.current + now.free_ranges.count.all.current);
  out.blocks.resize(2 * blocks + kSnapshotSpareBlocks);  // touches it, too
  out.blocks.clear();
  out.segments.reserve(static_cast<std::size_t>(now.segments.all.current) + kSnapshotSpareSegments);
}

}  // namespace

DeviceStats CachingAllocator::stats() {
  const CacheSet::Folded folded(parts_.caches);
  DeviceStats out = parts_.ledger.read_stats();
  out.free_ranges = parts_.arenas.free_ranges();
  out.arena_locks = parts_.arenas.lock_counts();
  return out;
}

Metrics CachingAllocator::metrics(bool own) {
  Metrics out;
  {
    const CacheSet::Folded folded(parts_.caches);
    out.device = parts_.ledger.read_metrics(own);
  }
  const std::vector<PoolGroup> groups = parts_.accounts.groups();
  out.pools.reserve(groups.size());
  for (const PoolGroup& group : groups) out.pools.push_back({group.label, metrics_of(group, own)});
  return out;
}

// Leases end before peaks are reset: no thread may be ahead of totals that have no room.
void CachingAllocator::reset(void (*action)(Stat&)) {
  const CacheSet::Folded folded(parts_.caches);
  parts_.ledger.reset(action);
  parts_.arenas.reset(action);
}

std::vector<std::pair<std::uintptr_t, std::size_t>> CachingAllocator::backed_ranges() {
  std::vector<std::pair<std::uintptr_t, std::size_t>> out;
  parts_.arenas.for_each([&out](const Arena& arena) {
    if (arena.pages.asleep()) return;
    for (const Segment* segment = arena.pages.first_segment(); segment != nullptr; segment = segment->next) {
      for (const Span* span = segment->first; span != nullptr; span = span->next) {
        if (!span->is_backed()) continue;
        if (!out.empty() && out.back().first + out.back().second == span->start) {
          out.back().second += span->bytes;
        } else {
          out.emplace_back(span->start, span->bytes);
        }
      }
    }
  });
  return out;
}

Snapshot CachingAllocator::snapshot() {
  Snapshot out;
  make_room(stats(), out);
  take_picture(out);
  for (SnapshotSegment& segment : out.segments) segment.sums = sums_of(out.blocks_of(segment));
  return out;
}

// Whoever allocates waits for it.
void CachingAllocator::take_picture(Snapshot& out) {
  std::vector<bool> is_named;  // by account
  const AllCaches caches(slot());
  parts_.arenas.for_each([&](Arena& arena) { append_arena(arena, parts_.arenas.number_of(arena.family), out); });
  // A block that was live above may be gone by now, but then its free has not been charged off yet or its pool's name
  // is not needed: names are read while the caches, through which every free goes, are still held.
  for (const SnapshotBlock& block : out.blocks) {
    if (!block.live) continue;
    if (block.account >= is_named.size()) is_named.resize(block.account + 1);
    if (is_named[block.account]) continue;
    is_named[block.account] = true;
    out.pools.emplace(block.account, parts_.accounts.name_of(block.account));
  }
}

std::string CachingAllocator::check_invariants() {
  std::size_t live = 0;
  for (const SnapshotBlock& block : snapshot().blocks) live += block.live ? block.bytes : 0;
  if (live != static_cast<std::size_t>(stats().blocks.all.bytes.current)) return "allocated bytes against live blocks";
  if (parts_.arenas.held_bytes() != parts_.ledger.held()) return "held bytes against those of the arenas";
  if (!parts_.arenas.reserved_is_exact()) return "reserved bytes of a family against its arenas";
  return parts_.arenas.check_invariants();
}

}  // namespace mempool
