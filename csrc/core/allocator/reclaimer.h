// Gives memory back to the backend: when it is asked to, and by itself once demand has not come near it for long.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/accounts/ledger.h"
#include "core/allocator/arena_set.h"
#include "core/allocator/cache_set.h"
#include "core/allocator/decay.h"
#include "core/allocator/stream_collector.h"

namespace mempool {

class Reclaimer {
 public:
  Reclaimer(Ledger& ledger, StreamClocks& clocks, ArenaSet& arenas, CacheSet& caches, StreamCollector& collector,
            std::int64_t decay_ms, std::size_t granule_bytes)
      : ledger_(ledger),
        clocks_(clocks),
        arenas_(arenas),
        caches_(caches),
        collector_(collector),
        decay_(decay_ms, granule_bytes) {}

  // As CachingAllocator::trim().
  std::size_t trim(std::size_t target_bytes, bool may_wait) noexcept;
  // All that is free in the family.
  std::size_t trim(ArenaFamily& family) noexcept;
  // Moves the free memory of each arena together, so that it can serve one large block. Returns what that did.
  Gathering gather() noexcept;
  // One tick of the decay at the moment `now_ms`. Returns the bytes given.
  std::size_t decay(std::int64_t now_ms) noexcept;
  std::int64_t decay_tick_ms() const noexcept { return decay_.tick_ms(); }
  std::mutex& lock_for_fork() noexcept { return decay_.lock_for_fork(); }

 private:
  std::size_t recall_unused(std::size_t unused) noexcept;

  Ledger& ledger_;
  StreamClocks& clocks_;
  ArenaSet& arenas_;
  CacheSet& caches_;
  StreamCollector& collector_;
  Decay decay_;
};

}  // namespace mempool
