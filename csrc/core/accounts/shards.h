// What one thread has allocated and freed since its counts were last folded into the ledger's totals.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/accounts/block_size.h"
#include "core/allocator/policy.h"

namespace mempool {

// Three figures that always change together.
struct Amounts {
  std::int64_t count = 0;  // blocks
  std::int64_t bytes = 0;
  std::int64_t requested = 0;

  static Amounts of(BlockSize size) {
    return {1, static_cast<std::int64_t>(size.rounded), static_cast<std::int64_t>(size.asked)};
  }
  void add(const Amounts& other) {
    count += other.count;
    bytes += other.bytes;
    requested += other.requested;
  }
  void subtract(const Amounts& other) {
    count -= other.count;
    bytes -= other.bytes;
    requested -= other.requested;
  }
  Amounts plus(const Amounts& other, std::int64_t times) const {
    return {count + times * other.count, bytes + times * other.bytes, requested + times * other.requested};
  }
  bool exceeds(const Amounts& other) const {
    return count > other.count || bytes > other.bytes || requested > other.requested;
  }
  Amounts at_least_zero() const {
    return {std::max<std::int64_t>(count, 0), std::max<std::int64_t>(bytes, 0), std::max<std::int64_t>(requested, 0)};
  }
};

// Counts of one of torch's two pools. The thread adds and subtracts; the Ledger grants the lease.
struct Shard {
  void add(BlockSize size) { ups.add(Amounts::of(size)); }
  void subtract(BlockSize size) { downs.add(Amounts::of(size)); }
  // After add(): the thread is ahead of the totals by more than its lease. Ledger::settle() comes next.
  bool is_ahead() const { return balance().exceeds(lease); }
  // After subtract(): the thread is so far behind that the totals look too high to others. Ledger::fold() comes next.
  bool is_behind() const {
    const Amounts now = balance();
    return now.bytes < -kFoldBytes || now.requested < -kFoldBytes || now.count < -kFoldBlocks;
  }

  Amounts balance() const { return ups.plus(downs, -1); }
  // Each block counts, so without one there are no bytes either.
  bool is_clean() const { return (ups.count | downs.count | lease.count | lease.bytes | lease.requested) == 0; }

  Amounts ups;
  Amounts downs;
  Amounts lease;
};

// Of blocks that the root pool is charged with. The lock of the thread's cache guards them.
struct Shards {
  Shard& of(bool is_small) { return is_small ? small : large; }
  bool is_clean() const { return small.is_clean() && large.is_clean(); }

  Shard small;
  Shard large;
};

}  // namespace mempool
