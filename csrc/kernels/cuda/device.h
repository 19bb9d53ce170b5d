// The part of CUDA that the kernels are written with. nvcc compiles them to CUDA; a C++ compiler compiles them against
// tests/cuda_emulator, and they run on the CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#if defined(__CUDACC__)

// Declares dynamic shared memory, the only kind that kernels here use: `name` points to it, aligned for any vector.
#define MEMPOOL_SHARED_MEMORY(name) extern __shared__ __align__(128) unsigned char name[]

// Launches kernel(...) on a grid. CUDA wants more shared memory than 48 KiB to be asked for first.
#define MEMPOOL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                \
  do {                                                                                                                \
    if ((shared_bytes) > 48 * 1024)                                                                                   \
      static_cast<void>(                                                                                              \
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes))); \
    kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__);                                                       \
  } while (false)

#else

#define MEMPOOL_SHARED_MEMORY(name) unsigned char* const name = emulator::dynamic_shared()

#define MEMPOOL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                      \
  do {                                                                                      \
    static_cast<void>(stream);                                                              \
    emulator::launch(#kernel, grid, dim3{static_cast<unsigned>(block), 1, 1}, shared_bytes, \
                     [=] { kernel(__VA_ARGS__); });                                         \
  } while (false)

#endif

namespace mempool::kernels::cuda {

inline constexpr unsigned kAllLanes = 0xFFFFFFFFU;

}  // namespace mempool::kernels::cuda
