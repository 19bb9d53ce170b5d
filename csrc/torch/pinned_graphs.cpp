#include "torch/pinned_graphs.h"

#include <c10/cuda/CUDAStream.h>

#include <utility>
#include <vector>

#include "core/allocator/found_block.h"

namespace mempool::torch_pinned {
namespace {

using Guard = std::lock_guard<std::mutex>;

}  // namespace

// A pool of CUDA blocks is asked with the stream that a block is for. A pinned block is for none: the current one
// tells.
void GraphBlocks::begin(c10::MempoolId_t pool, std::function<bool(c10::Stream)> filter) {
  pools_.begin(
      pool, [filter = std::move(filter)](cudaStream_t) { return filter(c10::cuda::getCurrentCUDAStream().unwrap()); });
}

void* GraphBlocks::allocate(std::size_t bytes) {
  if (!pools_.is_routing()) return nullptr;
  const torch_cuda::PoolPointer pool = pools_.route(nullptr).pool;
  if (pool == nullptr) return nullptr;
  pool->family->captured = true;  // what is free in it may be what a replay uses
  return device_.allocate_from(*pool->family, bytes, 0);
}

bool GraphBlocks::note_use(void* block) {
  const ArenaFamily* const family = backed_range_of(block).family;
  if (family == nullptr || family->kind != ArenaFamily::Kind::fixed) return false;
  const Guard guard(mutex_);
  used_.try_emplace(block, Use{family->framework_id});
  count_.store(used_.size(), std::memory_order_relaxed);
  return true;
}

bool GraphBlocks::keep(void* block) {
  if (count_.load(std::memory_order_relaxed) == 0) [[likely]]
    return false;
  const Guard guard(mutex_);
  const auto found = used_.find(block);
  if (found == used_.end()) return false;
  found->second.is_freed = true;
  return true;
}

// Live blocks outlive the pool, as any block does; what was freed goes now. The memory itself goes back only after a
// wait for all work: replays may be under way.
void GraphBlocks::release(c10::MempoolId_t pool) {
  if (pools_.uses(pool) == 1) {
    std::vector<void*> freed;
    {
      const Guard guard(mutex_);
      std::erase_if(used_, [&](const auto& each) {
        if (each.second.pool != pool) return false;
        if (each.second.is_freed) freed.push_back(each.first);
        return true;
      });
      count_.store(used_.size(), std::memory_order_relaxed);
    }
    for (void* const block : freed) device_.deallocate(block);
  }
  pools_.release(pool);
}

}  // namespace mempool::torch_pinned
