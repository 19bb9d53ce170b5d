// Compiles where the CUDA half does. The build tries it first: torch's allocator interface changes between releases.
#include <torch/csrc/cuda/CUDAPluggableAllocator.h>

#include <type_traits>

#include "torch/cuda_allocator.h"

// Each override is in torch's interface, or the class does not compile; none of torch's is missing, or it is abstract.
static_assert(!std::is_abstract_v<mempool::torch_cuda::CudaAllocator>);

// What cuda_reports.cpp fills in.
void read(c10::CachingDeviceAllocator::DeviceStats& stats) { stats.reserved_bytes_by_private_pools.clear(); }
