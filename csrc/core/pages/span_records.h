// Records of spans, allocated many together and reused. An operation reserves what it may need before its first step,
// so that no later step can fail for want of a record.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "core/pages/span.h"

namespace mempool {

class SpanRecords {
 public:
  // From here on take() can be called `spans` times. False: there is no memory for them.
  bool reserve(std::size_t spans) noexcept;
  // A fresh record. One must be reserved.
  Span* take() noexcept;
  // Whoever still points to the record finds no range there, until it is taken again.
  void give_back(Span* span) noexcept;

  std::size_t reserved() const noexcept { return free_count_; }

 private:
  std::vector<std::unique_ptr<Span[]>> lots_;
  Span* free_ = nullptr;
  std::size_t free_count_ = 0;
};

}  // namespace mempool
