// Tells a workload that repeats itself (training steps) from one that does not, by the sizes for which a range had to
// be stitched.
//
// Time is counted in allocations: a program that repeats itself makes the same number of them in each turn. A size
// recurs when it is missing at moments that lie apart by the same number, several times in a row. The shorter the turn,
// the more of them it takes: it might be a pattern inside of one step, such as a model's layers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/pages/policy.h"

namespace mempool {

class Recurrence {
 public:
  // A range of `bytes` is missing after `now` allocations. True when this recurs. Where there is no memory to remember
  // it nothing ever does.
  bool missing(std::size_t bytes, std::int64_t now) noexcept;

 private:
  static constexpr std::int64_t kNever = INT64_MIN / 2;

  struct Entry {
    std::size_t bytes = 0;
    std::size_t next = 0;
    std::array<std::int64_t, policy::kRememberedMoments> moments{};

    bool has(std::int64_t moment) const noexcept;
  };

  // By a hash of the size: a size that takes another's place starts anew.
  using Entries = std::array<Entry, policy::kRememberedSizes>;
  std::unique_ptr<Entries> entries_;
};

}  // namespace mempool
