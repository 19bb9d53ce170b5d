// Rounds addresses and sizes to an alignment, which is a power of two.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "common/expects.h"

namespace mempool {

constexpr std::uintptr_t align_down(std::uintptr_t value, std::size_t alignment) {
  MEMPOOL_EXPECTS(std::has_single_bit(alignment));
  return value & ~(static_cast<std::uintptr_t>(alignment) - 1);
}

// Whether align_up() would overflow.
constexpr bool rounds_past_max(std::size_t value, std::size_t alignment) {
  return value > std::numeric_limits<std::size_t>::max() - (alignment - 1);
}

// Ask rounds_past_max() first where `value` may be as large as that.
constexpr std::uintptr_t align_up(std::uintptr_t value, std::size_t alignment) {
  MEMPOOL_EXPECTS(!rounds_past_max(value, alignment));
  return align_down(value + alignment - 1, alignment);
}

}  // namespace mempool
