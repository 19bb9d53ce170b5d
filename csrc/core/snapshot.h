// A picture of the heap, in the terms of torch's snapshot.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mempool {

struct SnapshotBlock {
  std::uintptr_t address = 0;
  std::size_t bytes = 0;
  std::size_t requested = 0;
  std::uint32_t account = 0;
  bool live = false;
};

// One contiguous backed range.
struct SnapshotSegment {
  std::uintptr_t address = 0;
  std::size_t bytes = 0;
  std::string arena;                  // "default", or the isolated pool's name
  std::vector<SnapshotBlock> blocks;  // in address order, covering the range
};

}  // namespace mempool
