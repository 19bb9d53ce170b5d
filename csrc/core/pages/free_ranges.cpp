#include "core/pages/free_ranges.h"

#include "common/expects.h"

namespace mempool {

void FreeRanges::insert(Span* span) noexcept {
  MEMPOOL_EXPECTS(span->state == Span::State::free || span->state == Span::State::hole);
  if (span->state == Span::State::hole) {
    holes_.insert(span);
    return;
  }
  index_of(*span).insert(span);
  if (!span->shared) whole_.insert(span);
  changes_.add(span->shared, 1, static_cast<std::int64_t>(span->bytes));
}

void FreeRanges::erase(Span* span) noexcept {
  if (span->state == Span::State::hole) {
    holes_.erase(span);
    return;
  }
  index_of(*span).erase(span);
  if (whole_.holds(*span)) whole_.erase(span);
  changes_.add(span->shared, -1, -static_cast<std::int64_t>(span->bytes));
}

}  // namespace mempool
