#include "core/pages/recurrence.h"

#include <algorithm>
#include <new>

#include "core/pages/span.h"

namespace mempool {

bool Recurrence::Entry::has(std::int64_t moment) const noexcept {
  return std::find(moments.begin(), moments.end(), moment) != moments.end();
}

bool Recurrence::missing(std::size_t bytes, std::int64_t now) noexcept {
  if (entries_ == nullptr) {
    entries_.reset(new (std::nothrow) Entries);
    if (entries_ == nullptr) return false;
  }
  constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15U;
  static_assert(policy::kRememberedSizes == 256);
  Entry& entry = (*entries_)[(bytes / kPageBytes * kGolden) >> 56];
  if (entry.bytes != bytes) {
    entry.bytes = bytes;
    entry.moments.fill(kNever);
  }
  const bool recurs = std::any_of(entry.moments.begin(), entry.moments.end(), [&](std::int64_t before) {
    const std::int64_t turn = now - before;
    if (before == kNever || turn < policy::kShortestTurn) return false;
    const int turns = turn < policy::kLongTurn ? policy::kTurnsOfShort : policy::kTurns;
    for (int i = 1; i < turns; ++i) {
      if (!entry.has(before - i * turn)) return false;
    }
    return true;
  });
  entry.moments[entry.next++ % policy::kRememberedMoments] = now;
  return recurs;
}

}  // namespace mempool
