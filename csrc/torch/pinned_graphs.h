// Pinned blocks of captured graphs. A replay copies from and to them whenever it runs, so a block that a captured
// stream uses is not given to anybody before its graph's pool is released, freed or not.
#pragma once

#include <ATen/core/CachingHostAllocator.h>
#include <c10/core/Stream.h>

#include <atomic>
#include <cstddef>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <vector>

#include "core/allocator/caching_allocator.h"
#include "torch/cuda_pools.h"
#include "torch/pool_ids.h"

namespace mempool::torch_pinned {

// The pools of graphs, by torch's ids: each belongs to mempool or to the allocator before it, for as long as any graph
// uses it. Thread-safe.
class GraphBlocks {
 public:
  GraphBlocks(CachingAllocator& device, at::HostAllocator& previous)
      : device_(device),
        previous_(previous),
        pools_(device, /*index=*/-1, [](bool, void*, std::size_t, cudaStream_t, c10::MempoolId_t) {}) {}

  // `is_ours`: a pool that nobody uses yet becomes mempool's.
  void begin(c10::MempoolId_t pool, std::function<bool(c10::Stream)> filter, bool is_ours);
  void end(c10::MempoolId_t pool);
  void release(c10::MempoolId_t pool);

  // Where a block goes that the current stream's capture asks for.
  using Destination = torch_cuda::PrivatePools::Destination;
  Destination route() { return pools_.is_routing() ? pools_.route(nullptr) : Destination{}; }
  // A block of a pool of mempool's. Throws what allocate() does.
  void* allocate(const Destination& to, std::size_t bytes);
  // Notes that a captured stream uses the block: it stays until the pools are released of the graph that the current
  // stream is captured into, and of the one that the block was allocated for.
  void note_use(void* block);
  // Whether the block, which is freed, stays for a graph.
  bool keep(void* block);

 private:
  struct Use {
    std::set<c10::MempoolId_t> pools;
    bool is_freed = false;
  };
  bool knows(c10::MempoolId_t pool) { return pools_.find(pool) != nullptr; }
  bool is_previous(c10::MempoolId_t pool);
  static bool wait_for_replays();
  void release_blocks(c10::MempoolId_t pool);

  CachingAllocator& device_;
  at::HostAllocator& previous_;
  const torch_cuda::EarlierPoolIds uncounted_;
  torch_cuda::PrivatePools pools_;
  std::mutex releasing_;       // pools are released one at a time
  std::vector<void*> parked_;  // freed by a release that could not wait: they go with the next; guarded by releasing_
  std::atomic<std::size_t> count_{0};  // of used_: read at each free
  std::mutex mutex_;                   // guards the rest
  std::unordered_map<void*, Use> used_;
  std::map<c10::MempoolId_t, int> previous_uses_;
};

}  // namespace mempool::torch_pinned
