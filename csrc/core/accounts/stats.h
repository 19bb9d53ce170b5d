// Counters, in the shape of torch.cuda.memory_stats.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>

#include "common/errors.h"
#include "common/spin_lock.h"
#include "core/accounts/block_size.h"

namespace mempool {

// One figure. `allocated` and `freed` only grow (until they are reset); current = allocated - freed since the start.
struct Stat {
  std::int64_t current = 0;
  std::int64_t peak = 0;
  std::int64_t allocated = 0;
  std::int64_t freed = 0;

  void add(std::int64_t amount) {
    current += amount;
    allocated += amount;
    peak = std::max(peak, current);
  }
  void subtract(std::int64_t amount) {
    current -= amount;
    freed += amount;
  }
  // Takes over what happened elsewhere, in sum, with no peak on the way.
  void fold(std::int64_t up, std::int64_t down) {
    current += up - down;
    allocated += up;
    freed += down;
    peak = std::max(peak, current);
  }
  void absorb(const Stat& other);
  // Of something that is gone: its peak no longer adds to those of others.
  void absorb_retired(const Stat& other) {
    const std::int64_t highest = std::max(peak, other.peak);
    absorb(other);
    peak = highest;
  }
  static void reset_peak(Stat& stat) { stat.peak = stat.current; }
  static void reset_sum(Stat& stat) { stat.allocated = stat.freed = 0; }
};

// Figures of blocks: how many, their rounded bytes, the bytes that were asked for.
struct BlockStats {
  Stat count;
  Stat bytes;
  Stat requested;

  void add(BlockSize size) {
    count.add(1);
    bytes.add(static_cast<std::int64_t>(size.rounded));
    requested.add(static_cast<std::int64_t>(size.asked));
  }
  void subtract(BlockSize size) {
    count.subtract(1);
    bytes.subtract(static_cast<std::int64_t>(size.rounded));
    requested.subtract(static_cast<std::int64_t>(size.asked));
  }
  void for_each(void (*action)(Stat&)) {
    action(count);
    action(bytes);
    action(requested);
  }
};

// Torch's division: BlockSize::is_small() says which of its pools a block counts for.
template <typename T>
struct ByPool {
  T all;
  T small;
  T large;

  T& of(bool is_small) { return is_small ? small : large; }
  void absorb_retired(const ByPool& other) {
    all.absorb_retired(other.all);
    small.absorb_retired(other.small);
    large.absorb_retired(other.large);
  }
  void absorb(const ByPool& other) {
    all.absorb(other.all);
    small.absorb(other.small);
    large.absorb(other.large);
  }
  void for_each(void (*action)(T&)) {
    action(all);
    action(small);
    action(large);
  }
};

// Sums over several arenas. The peak is an upper bound: theirs need not have been at one moment.
inline void Stat::absorb(const Stat& other) {
  current += other.current;
  peak += other.peak;
  allocated += other.allocated;
  freed += other.freed;
}

// Adds to or, with a negative amount, takes from.
inline void change_by(Stat& stat, std::int64_t amount) { amount >= 0 ? stat.add(amount) : stat.subtract(-amount); }

// The same for both pools in one step, so that what goes from one to the other shows in no peak of the sum.
inline void change_by(ByPool<Stat>& pools, std::int64_t small, std::int64_t large) {
  change_by(pools.all, small + large);
  change_by(pools.small, small);
  change_by(pools.large, large);
}

// Free ranges of the arenas' indexes. Memory that waits in thread caches or inside slabs is in none of them.
struct FreeRangeStats {
  ByPool<Stat> count;
  ByPool<Stat> bytes;

  void absorb_retired(const FreeRangeStats& other) {
    count.absorb_retired(other.count);
    bytes.absorb_retired(other.bytes);
  }
  void absorb(const FreeRangeStats& other) {
    count.absorb(other.count);
    bytes.absorb(other.bytes);
  }
  void for_each(void (*action)(Stat&)) {
    count.for_each(action);
    bytes.for_each(action);
  }
  // What one operation has changed in sum: a range that was free within it alone is in no figure.
  struct Changes {
    struct Pool {
      std::int64_t count = 0;
      std::int64_t bytes = 0;
    } small, large;

    void add(bool is_small, std::int64_t ranges, std::int64_t range_bytes) {
      Pool& pool = is_small ? small : large;
      pool.count += ranges;
      pool.bytes += range_bytes;
    }
  };
  void apply(const Changes& changes) {
    change_by(count, changes.small.count, changes.large.count);
    change_by(bytes, changes.small.bytes, changes.large.bytes);
  }
};

// How many requests were refused, by OomReason.
using Refusals = std::array<std::int64_t, kOomReasons>;

struct DeviceStats {
  ByPool<BlockStats> blocks;    // live blocks ("allocation", "allocated_bytes", "active…", "requested_bytes")
  ByPool<Stat> reserved_bytes;  // physical memory held
  ByPool<Stat> segments;        // contiguous backed ranges
  FreeRangeStats free_ranges;   // "inactive_split": summed over arenas, so its peaks are upper bounds
  CountedMutex::Counts arena_locks;
  // Blocks that are freed and wait for other streams; and these together with the live ones ("active").
  ByPool<BlockStats> waiting;
  ByPool<BlockStats> active;
  // For ever: a reset of peaks or sums leaves these alone.
  Refusals refusals{};
  std::int64_t alloc_retries = 0;  // allocations that succeeded only after memory was reclaimed
  std::int64_t pressure_calls = 0;
  std::int64_t commits = 0;  // handles taken from the backend
  std::int64_t decommits = 0;
  std::int64_t decommitted_bytes = 0;
  std::int64_t moves = 0;  // handles that were moved to make a range longer
  std::int64_t moved_bytes = 0;
  std::int64_t decayed_bytes = 0;

  std::int64_t ooms() const { return std::accumulate(refusals.begin(), refusals.end(), std::int64_t{0}); }
};

}  // namespace mempool
