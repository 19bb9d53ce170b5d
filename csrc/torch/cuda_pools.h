// torch's private pools: the memory of captured graphs and of torch.cuda.MemPool, by their ids.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/allocator/caching_allocator.h"
#include "torch/cuda_foreign.h"

namespace mempool::torch_cuda {

using TorchAllocator = c10::cuda::CUDACachingAllocator::CUDAAllocator;

class PrivatePools;

// Closes its family when the last who uses it goes.
struct PrivatePool {
  PrivatePool(PrivatePools& owner_in, c10::MempoolId_t id_in) : owner(owner_in), id(id_in) {}
  PrivatePool(const PrivatePool&) = delete;
  PrivatePool& operator=(const PrivatePool&) = delete;
  ~PrivatePool();

  PrivatePools& owner;
  const c10::MempoolId_t id;
  ArenaFamily* family = nullptr;
  int uses = 1;
  bool no_split = false;  // no two blocks share a handle
};

using PoolPointer = std::shared_ptr<PrivatePool>;

// The pools of one device. Thread-safe.
class PrivatePools {
 public:
  // A segment of memory of a pool's own begins or ends. Called with locks held.
  using SegmentObserver =
      std::function<void(bool begins, void* address, std::size_t bytes, cudaStream_t stream, c10::MempoolId_t pool)>;

  PrivatePools(CachingAllocator& device, int index, SegmentObserver observer)
      : device_(device), index_(index), observer_(std::move(observer)) {}
  CachingAllocator& device() const noexcept { return device_; }

  // Whether any allocation may have to go to a pool: read on the way of each.
  bool is_routing() const noexcept { return routes_.load(std::memory_order_relaxed) != 0; }
  struct Destination {
    PoolPointer pool;
    bool is_elsewhere = false;  // to a pool of the allocator before mempool's
    c10::MempoolId_t id{0, 0};  // of the pool; (0, 0): to none
  };
  // Where blocks of the stream go at this moment: the latest begin() wins.
  Destination route(cudaStream_t stream);

  // `source`: whence the memory of a new pool comes; nullptr: from the device.
  void use(c10::MempoolId_t id, std::shared_ptr<TorchAllocator> source);
  void release(c10::MempoolId_t id);
  int uses(c10::MempoolId_t id);
  PoolPointer at(c10::MempoolId_t id);  // throws c10::Error for an unknown one
  PoolPointer find(c10::MempoolId_t id);
  // What each pool holds that there ever was, by the device's ledger.
  std::map<c10::MempoolId_t, std::shared_ptr<Ledger::Reserved>> reserved();
  void reset(void (*action)(Stat&));

  void begin(c10::MempoolId_t id, std::function<bool(cudaStream_t)> filter);
  void end(c10::MempoolId_t id);
  // The same of a pool of the allocator before mempool's, which is told as well. What began before mempool was in place
  // is not known here, and its end no error.
  void begin_elsewhere(c10::MempoolId_t id, std::function<bool(cudaStream_t)> filter);
  void end_elsewhere(c10::MempoolId_t id);
  // The streams that were current where anything began that has not ended: those of captures among them.
  std::vector<cudaStream_t> routed_streams();

 private:
  struct Route {
    c10::MempoolId_t id;
    std::function<bool(cudaStream_t)> filter;
    bool is_elsewhere;
    cudaStream_t begun_on;
  };
  void add_route(c10::MempoolId_t id, std::function<bool(cudaStream_t)> filter, bool is_elsewhere);
  bool end_route(c10::MempoolId_t id, bool is_elsewhere);

  CachingAllocator& device_;
  const int index_;  // torch's, of the device
  const SegmentObserver observer_;
  std::atomic<int> routes_{0};
  std::recursive_mutex mutex_;  // a filter may ask torch, which may ask here
  std::map<c10::MempoolId_t, PoolPointer> pools_;
  std::map<c10::MempoolId_t, std::shared_ptr<Ledger::Reserved>> reserved_;
  std::vector<Route> routing_;  // the latest first
};

}  // namespace mempool::torch_cuda
