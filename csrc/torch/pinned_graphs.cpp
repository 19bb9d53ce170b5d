#include "torch/pinned_graphs.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <iterator>
#include <utility>
#include <vector>

#include "core/allocator/found_block.h"
#include "torch/cuda_capture.h"

namespace mempool::torch_pinned {
namespace {

using Guard = std::lock_guard<std::mutex>;

}  // namespace

// ---- pools -------------------------------------------------------------------------------------------------------

// Graphs from before mempool was in place may use an early pool: each of them will release it.
bool GraphBlocks::is_previous(c10::MempoolId_t pool) {
  if (knows(pool)) return false;
  const Guard guard(mutex_);
  return uncounted_.contains(pool) || previous_uses_.contains(pool);
}

// A pool of CUDA blocks is asked with the stream that a block is for. A pinned block is for none: the current one
// tells.
void GraphBlocks::begin(c10::MempoolId_t pool, std::function<bool(c10::Stream)> filter, bool is_ours) {
  auto of_current = [filter](cudaStream_t) { return filter(c10::cuda::getCurrentCUDAStream().unwrap()); };
  if (knows(pool) || (is_ours && !is_previous(pool))) return pools_.begin(pool, std::move(of_current));
  previous_.begin_allocate_to_pool(pool, std::move(filter));
  {
    const Guard guard(mutex_);
    ++previous_uses_[pool];
  }
  pools_.begin_elsewhere(pool, std::move(of_current));
}

void GraphBlocks::end(c10::MempoolId_t pool) {
  if (knows(pool)) return pools_.end(pool);
  pools_.end_elsewhere(pool);
  previous_.end_allocate_to_pool(pool);
}

// The memory itself goes back only after a wait for all work: replays may be under way.
void GraphBlocks::release(c10::MempoolId_t pool) {
  const Guard one_at_a_time(releasing_);
  if (knows(pool)) {
    if (pools_.uses(pool) == 1) release_blocks(pool);
    return pools_.release(pool);
  }
  previous_.release_pool(pool);
  bool is_last = false;
  {
    const Guard guard(mutex_);
    const auto found = previous_uses_.find(pool);
    is_last = found == previous_uses_.end() || --found->second == 0;
    if (is_last && found != previous_uses_.end()) previous_uses_.erase(found);
  }
  // Graphs from before mempool was in place may use an early pool still, uncounted: its blocks stay.
  if (is_last && !uncounted_.contains(pool)) release_blocks(pool);
}

// ---- blocks ------------------------------------------------------------------------------------------------------

void* GraphBlocks::allocate(const Destination& to, std::size_t bytes) {
  ArenaFamily& family = *to.pool->family;
  family.captured = true;  // what is free in it may be what a replay uses
  return device_.allocate_from(family, bytes, 0);
}

void GraphBlocks::note_use(void* block) {
  std::set<c10::MempoolId_t> pools;
  if (const c10::MempoolId_t current = route().id; current != c10::MempoolId_t{0, 0}) pools.insert(current);
  const ArenaFamily* const family = backed_range_of(block).family;
  if (family != nullptr && family->kind == ArenaFamily::Kind::fixed && knows(family->framework_id)) {
    pools.insert(family->framework_id);
  }
  if (pools.empty()) return;
  const Guard guard(mutex_);
  used_[block].pools.merge(pools);
  count_.store(used_.size(), std::memory_order_relaxed);
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

// Whether all devices have done their work. Not while a graph is captured, which forbids to wait.
bool GraphBlocks::wait_for_replays() {
  auto* const cuda = c10::cuda::CUDACachingAllocator::get();
  if (torch_cuda::captured_device(*cuda) >= 0) return false;
  for (int i = 0; i < c10::cuda::device_count(); ++i) {
    const auto device = static_cast<c10::DeviceIndex>(i);
    if (!c10::cuda::hasPrimaryContext(device)) continue;
    const c10::cuda::CUDAGuard guard(device);
    if (cudaDeviceSynchronize() == cudaSuccess) continue;
    (void)cudaGetLastError();
    return false;
  }
  return true;
}

// Live blocks outlive the pool, as any block does; what was freed goes once no replay can be under way: in whichever
// stream one runs, a block does not know of it.
void GraphBlocks::release_blocks(c10::MempoolId_t pool) {
  std::vector<void*> freed;
  {
    const Guard guard(mutex_);
    for (auto each = used_.begin(); each != used_.end();) {
      Use& use = each->second;
      const bool is_last = use.pools.erase(pool) > 0 && use.pools.empty();
      if (is_last && use.is_freed) freed.push_back(each->first);
      each = is_last ? used_.erase(each) : std::next(each);
    }
    count_.store(used_.size(), std::memory_order_relaxed);
  }
  freed.insert(freed.end(), parked_.begin(), parked_.end());
  parked_.clear();
  if (freed.empty()) return;
  if (!wait_for_replays()) {
    parked_ = std::move(freed);
    return;
  }
  for (void* const block : freed) device_.deallocate(block);
}

}  // namespace mempool::torch_pinned
