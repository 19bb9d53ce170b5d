#include "core/allocator/reclaimer.h"

#include <algorithm>

#include "core/allocator/policy.h"

namespace mempool {

std::size_t Reclaimer::trim(std::size_t target_bytes, bool may_wait) noexcept {
  caches_.recall();
  collector_.collect();
  while (may_wait && ledger_.held() > target_bytes && collector_.await(0)) continue;
  const std::size_t held = ledger_.held();
  return arenas_.release(held > target_bytes ? held - target_bytes : 0, may_wait);
}

std::size_t Reclaimer::trim(ArenaFamily& family) noexcept {
  collector_.await_all();
  return arenas_.release(family);
}

Gathering Reclaimer::gather() noexcept {
  caches_.recall();
  collector_.collect();
  return arenas_.gather();
}

std::size_t Reclaimer::decay(std::int64_t now_ms) noexcept {
  if (!decay_.is_on()) return 0;
  const ThreadCache::Unused unused = caches_.fold_and_take_unused();
  clocks_.wait_for_gone();
  collector_.collect();
  if (!decay_.tick(now_ms, arenas_.take_need(), unused.span_bytes)) return 0;
  // Each small block may keep a slab.
  const bool is_recalled = decay_.should_recall(unused.small_blocks * kSlabBytes + unused.span_bytes);
  const std::size_t overcounted = is_recalled ? recall_unused(unused.span_bytes) : 0;
  const std::size_t surplus = decay_.surplus(ledger_.held(), overcounted);
  std::size_t given = 0;
  while (given < surplus) {
    const std::size_t slice = arenas_.release(std::min(kDecaySlice, surplus - given), false);
    if (slice == 0) break;
    given += slice;
  }
  if (given > 0) ledger_.count_decay(given);
  return given;
}

// Returns by how much the need of the span was taken for too high: handles that are free but for a block that waited in
// a cache count as needed, though only the block is unused.
std::size_t Reclaimer::recall_unused(std::size_t unused) noexcept {
  const std::size_t before = arenas_.need();
  caches_.recall();
  const std::size_t after = arenas_.need();
  return before > after + unused ? before - after - unused : 0;
}

}  // namespace mempool
