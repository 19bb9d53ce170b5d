// Split-K: blocks divide the inputs where a weight has fewer panels or tiles than a GPU has room for blocks. Blocks add
// their sums by atomic additions of integers, so their order does not matter, and the last block to arrive writes the
// outputs.
#pragma once

#include "kernels/cuda/finish.h"
#include "kernels/cuda/share.h"

namespace mempool::kernels::cuda {

inline dim3 decode_grid(std::int64_t outputs, int count, int tokens, int splits) {
  return {static_cast<unsigned>(panels_of(outputs)), static_cast<unsigned>(splits),
          static_cast<unsigned>((count + tokens - 1) / tokens)};
}

// Whether this block is the last of `blocks` to add its sums: then it may read the sums of all. All threads call it.
// `shared`: a word of shared memory that no thread reads any more.
__device__ __forceinline__ bool is_last(unsigned* arrived, unsigned blocks, unsigned* shared) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *shared = blocks - 1 - atomicAdd(arrived, 1U);  // blocks that have not arrived yet
  __syncthreads();
  if (*shared != 0) return false;
  __threadfence();
  return true;
}

// Ends a decode kernel: writes the outputs of a panel, or under split-K adds its sums. All threads call it. `sums`:
// [tokens][kPanel] of this block; each thread reads those that it wrote. `shared`: a word of shared memory that no
// thread reads any more.
template <int tokens, typename PackedWeights>
__device__ __forceinline__ void finish_panel(const PackedWeights& weights, const DeviceTokens& input, const Output& out,
                                             const Partial& partial, int first_token, const int* sums, int* shared) {
  const int panel = static_cast<int>(blockIdx.x);
  const int outputs = static_cast<int>(gridDim.x) * kPanel;  // of all panels
  constexpr int kSums = tokens * kPanel;
  if (gridDim.y == 1) {
    for (int i = threadIdx.x; i < kSums; i += kDecodeThreads) {
      finish(weights, input, out, first_token + i / kPanel, panel * kPanel + i % kPanel, sums[i]);
    }
    return;
  }
  const auto place = [&](int i) {
    return partial.sums + static_cast<std::int64_t>(first_token + i / kPanel) * outputs + panel * kPanel + i % kPanel;
  };
  for (int i = threadIdx.x; i < kSums; i += kDecodeThreads) {
    if (first_token + i / kPanel < input.count) atomicAdd(place(i), sums[i]);
  }
  if (!is_last(partial.arrived + blockIdx.z * gridDim.x + panel, gridDim.y, reinterpret_cast<unsigned*>(shared)))
    return;
  for (int i = threadIdx.x; i < kSums; i += kDecodeThreads) {
    if (first_token + i / kPanel >= input.count) break;
    finish(weights, input, out, first_token + i / kPanel, panel * kPanel + i % kPanel, __ldcg(place(i)));
  }
}

}  // namespace mempool::kernels::cuda
