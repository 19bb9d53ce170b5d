// Records of spans are reserved, handed out and reused.
#include <set>

#include "check.h"
#include "core/pages/span_records.h"

using mempool::Span;
using mempool::SpanRecords;

TEST(what_is_reserved_can_be_taken_and_each_record_is_another) {
  SpanRecords records;
  CHECK_EQ(records.reserved(), 0u);
  CHECK(records.reserve(1000));
  const std::size_t reserved = records.reserved();
  CHECK(reserved >= 1000);
  std::set<Span*> taken;
  for (std::size_t i = 0; i < reserved; ++i) taken.insert(records.take());
  CHECK_EQ(taken.size(), reserved);
  CHECK_EQ(records.reserved(), 0u);
}

TEST(a_record_that_comes_back_holds_no_range_and_is_fresh_when_it_is_taken_again) {
  SpanRecords records;
  CHECK(records.reserve(1));
  Span* const span = records.take();
  const std::size_t reserved = records.reserved();
  span->start = 4096;
  span->bytes = 8192;
  span->state = Span::State::block;
  span->shared = true;
  records.give_back(span);
  CHECK_EQ(records.reserved(), reserved + 1);
  CHECK_EQ(span->bytes, 0u);
  CHECK_EQ(records.take(), span);
  CHECK_EQ(span->start, 0u);
  CHECK(span->state == Span::State::hole);
  CHECK(!span->shared);
}
