#include "core/accounts/metrics.h"

#include <algorithm>

namespace mempool {
namespace {

std::int64_t to_figure(std::uint64_t limit) { return limit == kNoLimit ? -1 : static_cast<std::int64_t>(limit); }

// A process that frees what it has from its parent would have less than nothing.
std::int64_t less(std::int64_t now, std::int64_t inherited) { return std::max<std::int64_t>(now - inherited, 0); }
std::int64_t current(const Stat& now, const Stat& inherited) { return less(now.current, inherited.current); }
std::int64_t peak(const Stat& now, const Stat& inherited) { return less(now.peak, inherited.current); }

Refusals less(const Refusals& now, const Refusals& inherited) {
  Refusals out{};
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = now[i] - inherited[i];
  return out;
}

}  // namespace

PoolMetrics metrics_of(const PoolGroup& group, bool own) {
  const PoolGroup::Counts& now = group.counts;
  const PoolGroup::Counts before = own ? group.inherited : PoolGroup::Counts{};
  return {{current(now.blocks.bytes, before.blocks.bytes), peak(now.blocks.bytes, before.blocks.bytes),
           current(now.blocks.requested, before.blocks.requested), current(now.blocks.count, before.blocks.count),
           group.pools, to_figure(group.unlimited > 0 || group.heads == 0 ? kNoLimit : group.limits),
           now.pressure_calls - before.pressure_calls},
          less(now.refusals, before.refusals)};
}

DeviceMetrics metrics_of(const DeviceStats& now, const DeviceStats& inherited, const DeviceLimits& limits) {
  const BlockStats& blocks = now.blocks.all;
  const BlockStats& before = inherited.blocks.all;
  return {{current(blocks.bytes, before.bytes), peak(blocks.bytes, before.bytes),
           current(blocks.requested, before.requested), current(blocks.count, before.count),
           current(now.reserved_bytes.all, inherited.reserved_bytes.all),
           peak(now.reserved_bytes.all, inherited.reserved_bytes.all), to_figure(limits.limit),
           to_figure(limits.soft_limit), static_cast<std::int64_t>(limits.outside),
           now.pressure_calls - inherited.pressure_calls, now.alloc_retries - inherited.alloc_retries,
           now.moves - inherited.moves, now.moved_bytes - inherited.moved_bytes, now.commits - inherited.commits,
           now.decommits - inherited.decommits, now.decayed_bytes - inherited.decayed_bytes},
          less(now.refusals, inherited.refusals)};
}

}  // namespace mempool
