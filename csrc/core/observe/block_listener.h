// What the blocks of one device tell those who follow them: a contract toward the layers above, whose histories differ.
#pragma once

#include <cstdint>

#include "core/accounts/block_size.h"
#include "core/streams/stream_events.h"

namespace mempool {

class ArenaFamily;

// A live block, or one that is just freed.
struct ObservedBlock {
  void* address = nullptr;
  BlockSize size;
  std::uint32_t account = 0;
  StreamId stream = 0;  // that it was allocated for
  const ArenaFamily* family = nullptr;
};

// Called by the thread that allocates or frees, with no lock of the allocator held unless a function says so.
class BlockListener {
 public:
  BlockListener() = default;
  BlockListener(const BlockListener&) = delete;
  BlockListener& operator=(const BlockListener&) = delete;

  // The block is live, and nobody has its address yet.
  virtual void on_alloc(const ObservedBlock& block) noexcept = 0;
  // Nobody else gets the block before this returns. `waits`: nor before on_completed(), since other streams use it.
  virtual void on_free(const ObservedBlock& block, bool waits) noexcept = 0;
  // The other streams have caught up. Must not call the allocator: what collects these blocks is locked.
  virtual void on_completed(const ObservedBlock& block) noexcept = 0;

 protected:
  ~BlockListener() = default;
};

}  // namespace mempool
