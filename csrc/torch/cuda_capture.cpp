#include "torch/cuda_capture.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include "common/errors.h"

namespace mempool::torch_cuda {
namespace {

// torch hands the streams of a priority out in turn: this many calls see each, and leave the turn where it was.
constexpr int kStreamsOfPriority = 32;

bool is_pooled_captured(c10::DeviceIndex device) {
  const auto [least, greatest] = c10::cuda::CUDAStream::priority_range();
  bool found = false;
  for (int priority = least; priority >= greatest; --priority) {
    for (int i = 0; i < kStreamsOfPriority; ++i) {
      found |= is_captured(c10::cuda::getStreamFromPool(priority, device));
    }
  }
  return found;
}

bool has_captured_segment(c10::DeviceIndex device, c10::cuda::CUDACachingAllocator::CUDAAllocator& allocator) {
  try {
    for (const auto& segment : allocator.snapshot({0, 0}, false).segments) {
      if (segment.device == device && segment.stream != nullptr &&
          is_captured(static_cast<cudaStream_t>(segment.stream)))
        return true;
    }
  } catch (const c10::Error&) {  // it has no snapshots
  }
  return false;
}

bool is_any_captured(c10::DeviceIndex device, c10::cuda::CUDACachingAllocator::CUDAAllocator& allocator) {
  const c10::cuda::CUDAGuard guard(device);
  return is_captured(c10::cuda::getCurrentCUDAStream(device)) || is_pooled_captured(device) ||
         has_captured_segment(device, allocator);
}

}  // namespace

bool is_captured(cudaStream_t stream, bool unless_told) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) == cudaSuccess) return status != cudaStreamCaptureStatusNone;
  (void)cudaGetLastError();
  return unless_told;
}

int captured_device(c10::cuda::CUDACachingAllocator::CUDAAllocator& allocator) {
  const int devices = c10::cuda::device_count();
  for (int i = 0; i < devices; ++i) {
    const auto device = static_cast<c10::DeviceIndex>(i);
    // Elsewhere nothing has run.
    if (c10::cuda::hasPrimaryContext(device) && is_any_captured(device, allocator)) return i;
  }
  return -1;
}

void refuse_in_capture(int device, const std::string& call) {
  throw PoolStateError("mempool: a CUDA graph is being captured on device " + std::to_string(device) +
                       ", and torch's allocator does not change under it. Call mempool." + call +
                       " before the capture begins, or when it has ended.");
}

}  // namespace mempool::torch_cuda
