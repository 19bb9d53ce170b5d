// Plain functions over the allocators of all devices, for torch's stock CUDAPluggableAllocator: mempool_malloc,
// mempool_free, and those of its hooks. A process that does not install mempool as a whole uses them by name.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

namespace mempool::torch_cuda {

inline constexpr const char* kRefusalInChild =
    "mempool: CUDA memory cannot be allocated in a forked process after its parent has used CUDA. Use the 'spawn' "
    "start method (torch.multiprocessing.set_start_method('spawn')).";

// Whether the allocator is torch's stock one over mempool_malloc: what it gives is mempool's own memory.
bool is_of_functions(const c10::cuda::CUDACachingAllocator::CUDAAllocator& allocator) noexcept;

}  // namespace mempool::torch_cuda
