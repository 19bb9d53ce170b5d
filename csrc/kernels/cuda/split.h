// Inputs divided among blocks, where a weight has fewer panels, or tiles, than a GPU has room for. Sums are integers,
// so the order in which blocks add theirs does not matter. The last block to arrive finishes what they share.
#pragma once

#include "kernels/cuda/finish.h"
#include "kernels/cuda/share.h"

namespace mempool::kernels::cuda {

inline dim3 decode_grid(std::int64_t outputs, int count, int tokens, int splits) {
  return {static_cast<unsigned>(panels_of(outputs)), static_cast<unsigned>(splits),
          static_cast<unsigned>((count + tokens - 1) / tokens)};
}

// Whether this block is the last of `blocks` that have added their sums: then it may read them. All threads call it.
// `shared`: a word that nobody reads any more.
__device__ __forceinline__ bool is_last(unsigned* arrived, unsigned blocks, unsigned* shared) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *shared = blocks - 1 - atomicAdd(arrived, 1U);  // that are still to come
  __syncthreads();
  if (*shared != 0) return false;
  __threadfence();
  return true;
}

// All threads call it. `sums`: [tokens][kPanel] of this block, of which each thread wrote those that it reads here.
// `shared`: a word that nobody reads any more.
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
