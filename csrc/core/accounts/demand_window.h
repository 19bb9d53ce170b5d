// A sliding maximum of the bytes that were needed within the last decay_ms: demand may return to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "common/expects.h"

namespace mempool {

class DemandWindow {
 public:
  explicit DemandWindow(std::int64_t span_ms) : span_ms_(span_ms) {}

  // `highest` was reached between the last call and now; `now_ms` never goes back. May throw std::bad_alloc.
  void add(std::int64_t now_ms, std::int64_t highest);
  // Over the span that ends at the last call. Expects that add() was called.
  std::int64_t highest() const {
    MEMPOOL_EXPECTS(!falling_.empty());
    return falling_.front().bytes;
  }

 private:
  struct Point {
    std::int64_t time_ms;
    std::int64_t bytes;
  };
  const std::int64_t span_ms_;
  std::deque<Point> falling_;  // what a later point has not surpassed, oldest first
};

}  // namespace mempool
