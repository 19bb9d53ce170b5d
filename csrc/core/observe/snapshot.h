// A picture of the heap, in the terms of torch's snapshot.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/streams/stream_events.h"

namespace mempool {

struct SnapshotBlock {
  std::uintptr_t address = 0;
  std::size_t bytes = 0;
  std::size_t requested = 0;
  std::uint32_t account = 0;
  bool live = false;
  bool waiting = false;  // freed, but other streams may use it still
};

// Bytes of the blocks of a segment.
struct SnapshotSums {
  std::size_t allocated = 0;  // of live blocks
  std::size_t active = 0;     // and of those that wait
  std::size_t requested = 0;
  bool is_large = false;  // some block of it, free or not, is larger than those of torch's small pool
};

// One contiguous backed range.
struct SnapshotSegment {
  std::uintptr_t address = 0;
  std::size_t bytes = 0;
  std::string arena;             // "default", or the isolated pool's name
  std::size_t arena_number = 0;  // tells families of arenas of one name apart; 0 is the default one
  StreamId stream = 0;
  std::pair<std::uint64_t, std::uint64_t> framework_id{};  // ArenaFamily::framework_id
  bool is_of_device = true;                                // else memory of the family's own
  bool asleep = false;  // its pool sleeps: the addresses are kept, no memory is held for them
  // Of Snapshot::blocks.
  std::size_t first_block = 0;
  std::size_t block_count = 0;
  SnapshotSums sums{};
};

struct Snapshot {
  std::vector<SnapshotSegment> segments;
  std::vector<SnapshotBlock> blocks;           // one behind the other: of one vector, so that it grows before any lock
  std::map<std::uint32_t, std::string> pools;  // names of the accounts that live blocks are charged to

  // In address order, covering the range.
  std::span<const SnapshotBlock> blocks_of(const SnapshotSegment& segment) const {
    return {blocks.data() + segment.first_block, segment.block_count};
  }
};

}  // namespace mempool
