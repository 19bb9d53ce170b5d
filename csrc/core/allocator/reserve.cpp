// Memory that is held ahead of demand.
#include <algorithm>
#include <new>
#include <string>
#include <utility>

#include "common/align.h"
#include "common/errors.h"
#include "core/allocator/caching_allocator.h"

namespace mempool {
namespace {

constexpr std::size_t kPiece = std::size_t{256} << 20;  // is taken at a time, so that others get their turn

PageHeap::Range extend(Arena& arena, std::size_t bytes, Refusal& why) noexcept {
  const ArenaGuard guard(arena.mutex);
  if (arena.pages.asleep() || arena.family.asleep.load()) {
    why = Refusal::asleep;
    return {};
  }
  return arena.pages.extend(bytes, why);
}

PoolClosedError closed_error(const std::string& name) {
  return PoolClosedError("mempool: pool '" + name + "' is closed: no memory can be reserved for it.");
}

}  // namespace

void CachingAllocator::reserve(Account* pool, std::size_t bytes) {
  const std::string name = pool != nullptr ? parts_.accounts.read(*pool).name : "default";
  if (pool != nullptr && !pool->isolated) {
    throw ConfigError("pool '" + name + "' shares its memory with others: reserve memory for the device instead, or " +
                      "make the pool with isolated=True.");
  }
  const std::size_t granule = parts_.memory->granule_bytes();
  if (rounds_past_max(bytes, granule)) {
    throw OutOfMemory({.reason = OomReason::size_overflow, .device = device(), .pool = name, .requested = bytes});
  }
  std::size_t wanted = align_up(bytes, granule);
  // Of a limit that is no multiple of a granule the last bytes cannot be held.
  if (const std::size_t most = parts_.ledger.most_held(); bytes <= most && wanted > most) wanted -= granule;
  ArenaFamily& family = parts_.arenas.family_of(pool);
  Arena* const arena = parts_.arenas.arena_of(family, 0);
  if (arena == nullptr) throw std::bad_alloc();

  const std::lock_guard guard(reserving_);
  const std::size_t before = family.floor.exchange(wanted);
  // Closing a pool ends its reservation: one of the two sees what the other has done.
  const auto is_closed = [&] {
    for (const Account* each = pool; each != nullptr; each = each->parent) {
      if (parts_.accounts.read(*each).closed) return true;
    }
    return false;
  };
  const Reservation taken = is_closed() ? Reservation{.why = Refusal::none} : hold_at_least(*arena, wanted);
  parts_.tell_growth();
  if (is_closed()) {
    family.floor.store(0);
    parts_.arenas.release(family, taken.bytes);
    throw closed_error(name);
  }
  if (taken.is_whole) return;
  family.floor.store(before);
  parts_.arenas.release(family, taken.bytes);
  if (taken.why == Refusal::asleep) throw PoolAsleepError("mempool: pool '" + name + "' is asleep: wake() it first.");
  OomInfo info = facts_of(taken.why, parts_.ledger);
  info.device = device();
  info.pool = name;
  info.requested = bytes;
  info.held = parts_.ledger.held();
  info.outside = parts_.ledger.outside();
  throw OutOfMemory(std::move(info));
}

// Extends the arena until its family holds `wanted`. What others have free goes back for it once, and what the
// framework keeps.
CachingAllocator::Reservation CachingAllocator::hold_at_least(Arena& arena, std::size_t wanted) noexcept {
  Reservation taken;
  // Memory that comes with its address is of use to a large request in one piece alone.
  const std::size_t piece = parts_.memory->capabilities().backs_addresses ? SIZE_MAX : kPiece;
  for (bool may_release = true;;) {
    const std::size_t held = parts_.arenas.held_bytes(arena.family);
    taken.is_whole = held >= wanted;
    if (taken.is_whole) return taken;
    const PageHeap::Range range = extend(arena, std::min(wanted - held, piece), taken.why);
    if (range.bytes > 0) {
      taken.bytes += range.bytes;
      parts_.memory->populate(reinterpret_cast<void*>(range.start), range.bytes);  // NOLINT(performance-no-int-to-ptr)
      continue;
    }
    if (taken.why == Refusal::asleep || !std::exchange(may_release, false)) return taken;
    parts_.caches.recall();
    const bool is_released = parts_.arenas.release(wanted - held, true) > 0;
    if (!parts_.relieve() && !is_released) return taken;
  }
}

}  // namespace mempool
