// Integer alignment helpers. Every alignment argument must be a power of two unless said otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace mempool {

constexpr std::uintptr_t align_down(std::uintptr_t value, std::size_t alignment) {
  return value & ~(static_cast<std::uintptr_t>(alignment) - 1);
}

// Precondition: value + alignment - 1 does not overflow; check with `rounds_past_max` first where it may.
constexpr std::uintptr_t align_up(std::uintptr_t value, std::size_t alignment) {
  return align_down(value + alignment - 1, alignment);
}

constexpr bool rounds_past_max(std::size_t value, std::size_t alignment) {
  return value > std::numeric_limits<std::size_t>::max() - (alignment - 1);
}

}  // namespace mempool
