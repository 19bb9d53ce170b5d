// Tells what a process has made from what it was forked with.
#pragma once

#include <atomic>
#include <cstdint>

namespace mempool {

// How many forks lie between the first process and this one. What bears a lower number was inherited.
inline std::atomic<std::uint32_t>& fork_generation() noexcept {
  static constinit std::atomic<std::uint32_t> generation{0};
  return generation;
}

}  // namespace mempool
