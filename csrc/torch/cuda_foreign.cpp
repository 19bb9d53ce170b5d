#include "torch/cuda_foreign.h"

#include <c10/cuda/CUDAException.h>

namespace mempool::torch_cuda {
namespace {

constexpr std::size_t kRounding = 512;

}  // namespace

ForeignPool::~ForeignPool() { trim(); }

bool ForeignPool::rest() const noexcept {
  int before = 0;
  if (cudaGetDevice(&before) != cudaSuccess || cudaSetDevice(device_) != cudaSuccess) return false;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  const bool is_done = cudaDeviceSynchronize() == cudaSuccess;
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (!is_done) (void)cudaGetLastError();
  cudaSetDevice(before);
  return is_done;
}

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
  // Rare, and without a record of what the other streams do: all of them come to rest first. During a capture they
  // cannot: then the block waits for the next trim.
  if (found->second.is_used_elsewhere && !rest()) {
    waiting_.emplace_back(address, found->second);
  } else {
    free_.emplace(std::pair(found->second.stream, found->second.bytes), address);
  }
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
  if ((free_.empty() && waiting_.empty()) || !rest()) return;
  for (const auto& [address, block] : waiting_) free_.emplace(std::pair(block.stream, block.bytes), address);
  waiting_.clear();
  for (const auto& [key, address] : free_) {
    source_->raw_delete(address);
    held_ -= key.second;
  }
  free_.clear();
}

}  // namespace mempool::torch_cuda
