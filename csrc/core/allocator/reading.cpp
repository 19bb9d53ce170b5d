// Statistics, snapshots and checks: whatever looks at the whole allocator at one moment.
#include <algorithm>
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
        out.segments.push_back(
            {span->start, 0, family.name, number, arena.stream(), &family, arena.pages.asleep(), out.blocks.size(), 0});
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

}  // namespace

DeviceStats CachingAllocator::stats() {
  AllCaches caches(slot_);
  caches.for_each([this](ThreadCache& cache) { ledger_.fold(cache.shards); });
  DeviceStats out = ledger_.read_stats();
  for_each_arena(
      [&out](Arena& arena) {
        FreeRangeStats ranges = arena.pages.free_ranges();
        if (arena.pages.asleep()) ranges.for_each([](Stat& stat) { stat.current = 0; });
        out.free_ranges.absorb(ranges);
      },
      [&] { out.free_ranges.absorb(retired_ranges_); });
  return out;
}

void CachingAllocator::reset(void (*action)(Stat&)) {
  AllCaches caches(slot_);
  caches.for_each([this](ThreadCache& cache) { ledger_.fold(cache.shards); });
  ledger_.reset(action);
  for_each_arena([action](Arena& arena) { arena.pages.free_ranges().for_each(action); },
                 [&] { retired_ranges_.for_each(action); });
}

// Every thread that allocates waits while a snapshot is taken. So what takes longest, fresh memory for so many records,
// is had before: for the blocks that are live now, as many free ones in slabs, and some that come meanwhile.
void CachingAllocator::make_room_for_snapshot(Snapshot& out) {
  const DeviceStats now = stats();
  const auto blocks = static_cast<std::size_t>(now.blocks.all.count.current + now.free_ranges.count.all.current);
  out.blocks.resize(2 * blocks + kSnapshotSpareBlocks);  // touches it, too
  out.blocks.clear();
  out.segments.reserve(static_cast<std::size_t>(now.segments.all.current) + kSnapshotSpareSegments);
}

Snapshot CachingAllocator::snapshot() {
  Snapshot out;
  make_room_for_snapshot(out);
  std::vector<bool> is_named;  // by account
  const AllCaches caches(slot_);
  for_each_arena([&](Arena& arena) {
    const auto family = std::find_if(families_.begin(), families_.end(),
                                     [&](const std::unique_ptr<ArenaFamily>& f) { return f.get() == &arena.family; });
    append_arena(arena, static_cast<std::size_t>(family - families_.begin()), out);
  });
  // A block that was live above may be gone by now, but then its free has not been charged off yet or its pool's name
  // is not needed: names are read while the caches, through which every free goes, are still held.
  for (const SnapshotBlock& block : out.blocks) {
    if (!block.live) continue;
    if (block.account >= is_named.size()) is_named.resize(block.account + 1);
    if (is_named[block.account]) continue;
    is_named[block.account] = true;
    out.pools.emplace(block.account, accounts_.name_of(block.account));
  }
  return out;
}

std::string CachingAllocator::check_invariants() {
  std::size_t live = 0;
  for (const SnapshotBlock& block : snapshot().blocks) live += block.live ? block.bytes : 0;
  if (live != static_cast<std::size_t>(stats().blocks.all.bytes.current)) return "allocated bytes against live blocks";
  std::size_t held = 0;
  for_each_arena([&held](Arena& arena) { held += arena.pages.held_bytes(); });
  if (held != ledger_.held()) return "held bytes against those of the arenas";
  return check_structure();
}

std::string CachingAllocator::check_structure() {
  std::string broken;
  for_each_arena([&broken](Arena& arena) {
    if (broken.empty()) broken = arena.check_invariants();
  });
  return broken;
}

}  // namespace mempool
