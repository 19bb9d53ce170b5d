// Which streams are being captured into a graph.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

namespace mempool::torch_cuda {

// Whether the stream is; `unless_told` for a default stream, which cannot be asked while another one is captured, and
// is not captured itself.
bool is_captured(cudaStream_t stream, bool unless_told = true);
// Whether any of torch's streams of the device is: its pools of streams, those that are current for the calling thread,
// and those that the allocator has memory for. Makes the streams of torch's pools where there are none yet.
bool is_any_captured(c10::DeviceIndex device, c10::cuda::CUDACachingAllocator::CUDAAllocator& allocator);

}  // namespace mempool::torch_cuda
