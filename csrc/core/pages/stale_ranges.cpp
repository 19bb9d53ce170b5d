#include "core/pages/stale_ranges.h"

#include <new>

#include "common/expects.h"

namespace mempool {

bool StaleRanges::reserve(std::uintptr_t start) noexcept {
  if (!can_alias_) return true;
  try {
    ranges_.try_emplace(start, nullptr);
  } catch (const std::bad_alloc&) {
    return false;
  }
  return true;
}

void StaleRanges::set(Span* span) noexcept {
  MEMPOOL_EXPECTS(span->state == Span::State::stale);
  const auto reserved = ranges_.find(span->start);
  MEMPOOL_EXPECTS(reserved != ranges_.end() && reserved->second == nullptr);
  reserved->second = span;
}

}  // namespace mempool
