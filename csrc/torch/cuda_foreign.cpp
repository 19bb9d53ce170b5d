#include "torch/cuda_foreign.h"

#include <c10/cuda/CUDAException.h>

namespace mempool::torch_cuda {
namespace {

constexpr std::size_t kRounding = 512;

}  // namespace

ForeignPool::~ForeignPool() { trim(); }

void* ForeignPool::allocate(std::size_t bytes, cudaStream_t stream) {
  bytes = (bytes + kRounding - 1) / kRounding * kRounding;
  const std::lock_guard guard(mutex_);
  if (const auto found = free_.find({stream, bytes}); found != free_.end()) {
    void* const address = found->second;
    live_[address] = {bytes, stream, false};
    free_.erase(found);
    return address;
  }
  void* const address = source_->raw_alloc_with_stream(bytes, stream);
  TORCH_CHECK(address != nullptr, "the allocator of a MemPool returned no memory for ", bytes, " bytes");
  live_[address] = {bytes, stream, false};
  held_ += bytes;
  return address;
}

bool ForeignPool::free(void* address) {
  const std::lock_guard guard(mutex_);
  const auto found = live_.find(address);
  if (found == live_.end()) return false;
  // Rare, and without a record of what the other streams do: all of them come to rest first.
  if (found->second.is_used_elsewhere) C10_CUDA_CHECK(cudaDeviceSynchronize());
  free_.emplace(std::pair(found->second.stream, found->second.bytes), address);
  live_.erase(found);
  return true;
}

bool ForeignPool::add_use(const void* address) {
  const std::lock_guard guard(mutex_);
  const auto found = live_.find(address);
  if (found == live_.end()) return false;
  found->second.is_used_elsewhere = true;
  return true;
}

std::size_t ForeignPool::bytes_of(const void* address) {
  const std::lock_guard guard(mutex_);
  const auto found = live_.find(address);
  return found == live_.end() ? 0 : found->second.bytes;
}

bool ForeignPool::is_empty() {
  const std::lock_guard guard(mutex_);
  return live_.empty();
}

std::size_t ForeignPool::held() {
  const std::lock_guard guard(mutex_);
  return held_;
}

void ForeignPool::trim() {
  const std::lock_guard guard(mutex_);
  if (!free_.empty()) C10_CUDA_CHECK_WARN(cudaDeviceSynchronize());
  for (const auto& [key, address] : free_) {
    source_->raw_delete(address);
    held_ -= key.second;
  }
  free_.clear();
}

}  // namespace mempool::torch_cuda
