// A probe that the build compiles first: it compiles where the CUDA half does, since torch's allocator interface
// changes between releases.
#include <torch/csrc/cuda/CUDAPluggableAllocator.h>

#include <type_traits>

#include "torch/cuda_allocator.h"

// The class compiles only if torch's interface has each function that it overrides, and is abstract if one is missing.
static_assert(!std::is_abstract_v<mempool::torch_cuda::CudaAllocator>);
