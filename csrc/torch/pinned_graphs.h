// Pinned blocks of captured graphs. A replay copies from and to them whenever it runs, so a block that a captured
// stream uses is not given to anybody before its graph's pool is released, freed or not.
#pragma once

#include <c10/core/Stream.h>

#include <atomic>
#include <cstddef>
#include <functional>
#include <mutex>
#include <unordered_map>

#include "core/allocator/caching_allocator.h"
#include "torch/cuda_pools.h"

namespace mempool::torch_pinned {

// The pools of graphs, by torch's ids. Thread-safe.
class GraphBlocks {
 public:
  explicit GraphBlocks(CachingAllocator& device)
      : device_(device),
        pools_(device, /*index=*/-1, [](bool, void*, std::size_t, cudaStream_t, c10::MempoolId_t) {}) {}

  void begin(c10::MempoolId_t pool, std::function<bool(c10::Stream)> filter);
  bool knows(c10::MempoolId_t pool) { return pools_.find(pool) != nullptr; }
  void end(c10::MempoolId_t pool) { pools_.end(pool); }
  void release(c10::MempoolId_t pool);

  // A block for the graph that the current stream is captured into; nullptr: for none. Throws what allocate() does.
  void* allocate(std::size_t bytes);
  // Notes that a captured stream uses the block, if it belongs to a graph. False: it does not.
  bool note_use(void* block);
  // Whether the block, which is freed, stays until its graph's pool is released.
  bool keep(void* block);

 private:
  struct Use {
    c10::MempoolId_t pool;
    bool is_freed = false;
  };

  CachingAllocator& device_;
  torch_cuda::PrivatePools pools_;
  std::atomic<std::size_t> count_{0};  // of used_: read at each free
  std::mutex mutex_;                   // guards the rest
  std::unordered_map<void*, Use> used_;
};

}  // namespace mempool::torch_pinned
