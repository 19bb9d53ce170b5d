// How much of the memory that this process may use is left, as the kernel counts it at this moment, and whether tasks
// wait for memory. `root` is a prefix of each path, for tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace mempool {

struct MemoryRoom {
  // The smallest of MemTotal, RLIMIT_AS, and each enclosing control group's memory.max and memory.high (version 1:
  // memory.limit_in_bytes).
  std::size_t capacity = SIZE_MAX;
  // What can be taken before the first of these groups, or the machine, has no more. Page cache that the kernel drops
  // first (inactive_file; on the machine all that MemAvailable includes) is as good as free.
  std::size_t left = SIZE_MAX;
};
MemoryRoom memory_room(const std::string& root = "");

// Microseconds for which some task has waited for memory since the start (PSI, "some"): in this process's control
// group, else on the machine. Nothing where the kernel does not count.
std::optional<std::uint64_t> memory_stall_us(const std::string& root = "");

}  // namespace mempool
