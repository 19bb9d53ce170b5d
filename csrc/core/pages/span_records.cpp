#include "core/pages/span_records.h"

#include <new>

#include "common/expects.h"
#include "core/pages/policy.h"

namespace mempool {

bool SpanRecords::reserve(std::size_t spans) noexcept {
  while (free_count_ < spans) {
    try {
      lots_.reserve(lots_.size() + 1);
      lots_.push_back(std::make_unique<Span[]>(policy::kRecordsAtOnce));
    } catch (const std::bad_alloc&) {
      return false;
    }
    for (std::size_t i = 0; i < policy::kRecordsAtOnce; ++i) give_back(&lots_.back()[i]);
  }
  return true;
}

Span* SpanRecords::take() noexcept {
  MEMPOOL_EXPECTS(free_count_ > 0);
  Span* const span = free_;
  free_ = span->next;
  --free_count_;
  *span = Span{};
  return span;
}

void SpanRecords::give_back(Span* span) noexcept {
  MEMPOOL_EXPECTS(span->links[0].bin == 0 && span->links[1].bin == 0);
  span->bytes = 0;
  span->next = free_;
  free_ = span;
  ++free_count_;
}

}  // namespace mempool
