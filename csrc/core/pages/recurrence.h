// Tells a workload that repeats itself from one that does not, by the sizes for which a range had to be stitched.
//
// Time is counted in allocations: a program that repeats itself makes the same number of them in each turn. A size
// recurs when it is missing at moments that lie apart by the same number, several times in a row. The shorter the turn,
// the more of them it takes: it might be a pattern inside of one step, such as a model's layers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace mempool {

class Recurrence {
 public:
  static constexpr std::int64_t kLongTurn = 1000;     // allocations; from here on kTurns are enough
  static constexpr std::int64_t kShortestTurn = 100;  // of those it takes kTurnsOfShort

  // A range of `bytes` is missing after `now` allocations. True when this recurs. Where there is no memory to remember
  // it nothing ever does.
  bool missing(std::size_t bytes, std::int64_t now) noexcept;

 private:
  static constexpr int kTurns = 2;
  static constexpr int kTurnsOfShort = 6;
  static constexpr std::size_t kSizes = 256;  // by a hash; a size that takes another's place starts anew
  static constexpr std::size_t kMoments = 16;
  static constexpr std::int64_t kNever = INT64_MIN / 2;

  struct Entry {
    std::size_t bytes = 0;
    std::size_t next = 0;
    std::array<std::int64_t, kMoments> moments{};

    bool has(std::int64_t moment) const noexcept;
  };

  std::unique_ptr<std::array<Entry, kSizes>> entries_;
};

}  // namespace mempool
