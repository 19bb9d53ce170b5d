// Which streams are being captured into a graph.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

#include <string>

namespace mempool::torch_cuda {

// Whether the stream is; `unless_told` for a default stream, which cannot be asked while another one is captured, and
// is not captured itself.
bool is_captured(cudaStream_t stream, bool unless_told = true);
// A device that has any of torch's streams captured: its pools of streams, those that are current for the calling
// thread, and those that the allocator has memory for. -1: there is none. Makes the streams of torch's pools where
// there are none yet, on devices that something has run on.
int captured_device(c10::cuda::CUDACachingAllocator::CUDAAllocator& allocator);
// Throws the PoolStateError of a call of mempool's, `enable("cuda")` say, that cannot be made then.
[[noreturn]] void refuse_in_capture(int device, const std::string& call);

}  // namespace mempool::torch_cuda
