// How threads of kernels that use __dp4a share a panel: 16 side by side have four outputs each, and as many below each
// other divide the inputs.
#pragma once

#include <type_traits>

#include "kernels/cuda/occupancy.h"
#include "kernels/cuda/split.h"

namespace mempool::kernels::cuda {

inline constexpr int kDecodeColumns = static_cast<int>(kPanel) / 4;  // threads side by side, four outputs each
inline constexpr int kDecodeRows = kDecodeThreads / kDecodeColumns;  // threads that divide the inputs
static_assert(kWarp == 2 * kDecodeColumns);

// Shared memory of sum_over_rows.
inline constexpr int sum_bytes(int tokens) { return kDecodeWarps * tokens * static_cast<int>(kPanel * sizeof(int)); }

// launch(integral_constant) with how many tokens a block takes at once.
template <typename Launch>
void by_tokens(int count, Launch launch) {
  if (count == 1) return launch(std::integral_constant<int, 1>());
  if (count == 2) return launch(std::integral_constant<int, 2>());
  if (count <= 4) return launch(std::integral_constant<int, 4>());
  if (count <= 8) return launch(std::integral_constant<int, 8>());
  launch(std::integral_constant<int, 16>());
}

// `sums`: a thread's. `totals`: shared, [warps][tokens][kPanel]; the first of them become the sums over all threads,
// each written by the thread that finish_panel has read it.
template <int tokens>
__device__ __forceinline__ void sum_over_rows(const int (&sums)[tokens][4], int* totals) {
  constexpr int kSums = tokens * static_cast<int>(kPanel);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int token = 0; token < tokens; ++token) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int both = sums[token][i] + __shfl_xor_sync(kAllLanes, sums[token][i], kDecodeColumns);
      if (lane < kDecodeColumns) totals[warp * kSums + token * static_cast<int>(kPanel) + lane * 4 + i] = both;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kSums; i += kDecodeThreads) {
    int sum = totals[i];
    for (int other = 1; other < kDecodeWarps; ++other) sum += totals[other * kSums + i];
    totals[i] = sum;
  }
}

}  // namespace mempool::kernels::cuda
