// What one block costs: the bytes that are charged for it and the bytes that were asked for.
#pragma once

#include <cstddef>

namespace mempool {

// Where torch divides its "small_pool" from its "large_pool".
inline constexpr std::size_t kSmallPoolMax = std::size_t{1} << 20;  // bytes

struct BlockSize {
  std::size_t rounded = 0;
  std::size_t asked = 0;

  // Whether the block counts for torch's small pool.
  constexpr bool is_small() const { return rounded <= kSmallPoolMax; }
};

}  // namespace mempool
