// Stands in for CUDA's header of that name: what our host code calls.
#pragma once

#include <cstddef>
#include <cstring>

struct CUstream_st;
using cudaStream_t = CUstream_st*;
inline int cudaGetLastError() { return 0; }  // a launch that fails throws
inline int cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return 0;
}
