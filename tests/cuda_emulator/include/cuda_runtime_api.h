// Stands in for CUDA's header of that name: what our host code calls.
#pragma once

#include <cstddef>
#include <cstring>

using cudaStream_t = void*;
inline int cudaGetLastError() { return 0; }  // a launch that fails throws
inline int cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return 0;
}
