// "The earlier allocator": the one that served torch's CUDA tensors before mempool did, whichever of torch's own or of
// others it is. What it gave goes back to it, its private pools stay its own, and what it holds counts in mempool's
// limits. It serves again while mempool is disabled.
#pragma once

#include <atomic>
#include <cstddef>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "torch/cuda_pools.h"
#include "torch/pool_ids.h"

namespace mempool::torch_cuda {

class Earlier {
 public:
  explicit Earlier(TorchAllocator& allocator) noexcept : allocator_(allocator), has_served_(allocator.initialized()) {}
  TorchAllocator& get() const noexcept { return allocator_; }
  TorchAllocator* operator->() const noexcept { return &allocator_; }

  // Whether anything of torch's may be its: it was in use before mempool, or has served since.
  bool has_served() const noexcept { return has_served_.load(std::memory_order_acquire); }
  // It may serve from now on; `device_count`: 0 before torch has looked. Whether that is the first time.
  bool begin_serving(int device_count);

  // ---- its blocks
  // What it holds of a device, its cache included. 0 as well where it does not tell: a stock pluggable one.
  std::size_t held_bytes(int device) const noexcept;
  // Waits for the work that uses it. `pool`: as for emptyCache().
  void empty_cache(c10::MempoolId_t pool);
  void try_empty_cache() noexcept;  // of all pools; an error of its is nobody's
  // As record_stream does for a block that it gave without a DataPtr of its own.
  void record_stream(void* address, c10::cuda::CUDAStream stream);

  // Now, or once it serves.
  void enable_peer_access(c10::DeviceIndex device, c10::DeviceIndex to_access);

  // ---- its private pools
  // How many uses a pool has there; 0: it is none of its. Where the allocator does not tell, one at least for a pool
  // that it may have had before mempool could count.
  int uses(c10::DeviceIndex device, c10::MempoolId_t pool);
  // Uses begin (1) and end (-1): for an allocator that does not tell them.
  void count_use(c10::DeviceIndex device, c10::MempoolId_t pool, int change);
  // Whether blocks of the calling thread, on its current stream, go to one of them: asked by allocating one.
  bool is_routing();

 private:
  TorchAllocator& allocator_;
  const EarlierPoolIds uncounted_;
  std::atomic<bool> has_served_;
  std::mutex mutex_;
  std::map<std::pair<c10::DeviceIndex, c10::MempoolId_t>, int> uses_;
  std::set<std::pair<c10::DeviceIndex, c10::DeviceIndex>> peers_;  // that it has not been told of
};

}  // namespace mempool::torch_cuda
