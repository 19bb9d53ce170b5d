#include "torch/cuda_earlier.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <utility>

namespace mempool::torch_cuda {
namespace {

// A capture forbids calls in other streams, too, that do not touch it.
class RelaxedCapture {
 public:
  RelaxedCapture() noexcept { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;
  ~RelaxedCapture() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

bool Earlier::begin_serving(int device_count) {
  if (device_count > 0 && !allocator_.initialized()) allocator_.init(device_count);
  const std::lock_guard guard(mutex_);
  const bool is_first = !has_served_.exchange(true, std::memory_order_acq_rel);
  for (const auto& [device, to_access] : std::exchange(peers_, {})) allocator_.enablePeerAccess(device, to_access);
  return is_first;
}

void Earlier::enable_peer_access(c10::DeviceIndex device, c10::DeviceIndex to_access) {
  const std::lock_guard guard(mutex_);
  if (has_served()) return allocator_.enablePeerAccess(device, to_access);
  peers_.emplace(device, to_access);
}

std::size_t Earlier::held_bytes(int device) const noexcept {
  if (!has_served()) return 0;
  try {
    const auto stats = allocator_.getDeviceStats(static_cast<c10::DeviceIndex>(device));
    return static_cast<std::size_t>(stats.reserved_bytes.front().current);
  } catch (const std::exception&) {  // it does not tell, or does not know the device
    (void)cudaGetLastError();
    return 0;
  }
}

void Earlier::empty_cache(c10::MempoolId_t pool) {
  const RelaxedCapture relaxed;
  allocator_.emptyCache(pool);
}

void Earlier::try_empty_cache() noexcept {
  if (!has_served()) return;
  try {
    empty_cache({0, 0});
  } catch (const std::exception&) {  // it keeps what it has
    (void)cudaGetLastError();
  }
}

// The DataPtr owns nothing: its context is null.
void Earlier::record_stream(void* address, c10::cuda::CUDAStream stream) {
  allocator_.recordStream(c10::DataPtr(address, nullptr, allocator_.raw_deleter(), stream.device()), stream);
}

int Earlier::uses(c10::DeviceIndex device, c10::MempoolId_t pool) {
  if (!has_served()) return 0;
  try {
    return allocator_.getPoolUseCount(device, pool);
  } catch (const c10::Error&) {  // it does not tell
  }
  const std::lock_guard guard(mutex_);
  const auto found = uses_.find({device, pool});
  const int counted = found != uses_.end() ? found->second : 0;
  return uncounted_.contains(pool) ? std::max(counted, 1) : counted;
}

void Earlier::count_use(c10::DeviceIndex device, c10::MempoolId_t pool, int change) {
  const std::lock_guard guard(mutex_);
  const auto entry = uses_.try_emplace({device, pool}, 0).first;
  entry->second += change;
  if (entry->second <= 0) uses_.erase(entry);
}

bool Earlier::is_routing() {
  try {
    void* const probe = allocator_.raw_alloc(1);
    const auto address = reinterpret_cast<std::uintptr_t>(probe);
    bool found = false;
    try {
      for (const auto& segment : allocator_.snapshot({0, 0}, false).segments) {
        const bool is_there = address >= segment.address && address - segment.address < segment.total_size;
        found |= is_there && segment.owner_private_pool_id != c10::MempoolId_t{0, 0};
      }
    } catch (const c10::Error&) {  // it has no snapshots, and so no pools that it could tell
    }
    allocator_.raw_delete(probe);
    return found;
  } catch (const c10::Error&) {  // there is no memory for a block
    (void)cudaGetLastError();
    return false;
  }
}

}  // namespace mempool::torch_cuda
