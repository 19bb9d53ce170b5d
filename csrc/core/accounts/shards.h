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
  Amounts part(std::int64_t of) const { return {count / of, bytes / of, requested / of}; }
  bool exceeds(const Amounts& other) const {
    return count > other.count || bytes > other.bytes || requested > other.requested;
  }
  // The larger, and the smaller, of each figure.
  Amounts at_least(const Amounts& other) const {
    return {std::max(count, other.count), std::max(bytes, other.bytes), std::max(requested, other.requested)};
  }
  Amounts at_most(const Amounts& other) const {
    return {std::min(count, other.count), std::min(bytes, other.bytes), std::min(requested, other.requested)};
  }
};

// How far behind a thread without a lease may be.
inline constexpr Amounts kLeastOfNone{-kFoldBlocks, -kFoldBytes, -kFoldBytes};

// Counts of one of torch's two pools. The thread adds and subtracts; the Ledger grants the lease.
struct Shard {
  void add(BlockSize size) { ups.add(Amounts::of(size)); }
  void subtract(BlockSize size) { downs.add(Amounts::of(size)); }
  // After add(): the thread is ahead of the totals by more than its lease. Ledger::settle() comes next.
  bool is_ahead() const { return balance().exceeds(lease); }
  // After subtract(): the thread has less than the least that goes with its lease, or is so far behind that the totals
  // look too high to others. Ledger::ease() comes next.
  bool is_behind() const { return least.exceeds(balance()); }

  // Half of what the thread has, if that is many blocks: it is behind a number of times that grows with the logarithm
  // of its way down, and not at all where a few blocks come and go.
  void lower_least() {
    const Amounts has = balance().at_least({});
    least = has.count < kBlocksToEase ? kLeastOfNone : has.part(2).plus(kLeastOfNone, 1);
  }
  void clear() {
    const bool has = has_leased;
    *this = {};
    has_leased = has;
  }

  Amounts balance() const { return ups.plus(downs, -1); }
  // Each block counts, so without one there are no bytes either.
  bool is_clean() const { return (ups.count | downs.count | lease.count | lease.bytes | lease.requested) == 0; }

  Amounts ups;
  Amounts downs;
  Amounts lease;
  Amounts least = kLeastOfNone;
  bool has_leased = false;  // now or before: the thread counts as one that shares what can be leased
};

// Of blocks that the root pool is charged with. The lock of the thread's cache guards them.
struct Shards {
  Shard& of(bool is_small) { return is_small ? small : large; }
  bool is_clean() const { return small.is_clean() && large.is_clean(); }
  void clear() {
    small.clear();
    large.clear();
  }

  Shard small;
  Shard large;
};

}  // namespace mempool
