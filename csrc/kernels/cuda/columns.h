// How the threads of a block share a panel in kernels that use __dp4a: 16 columns of threads have four outputs each,
// and 16 rows of threads divide the inputs.
#pragma once

#include <type_traits>

#include "kernels/cuda/occupancy.h"
#include "kernels/cuda/split.h"

namespace mempool::kernels::cuda {

inline constexpr int kDecodeColumns = static_cast<int>(kPanel) / 4;
inline constexpr int kDecodeRows = kDecodeThreads / kDecodeColumns;
static_assert(kWarp == 2 * kDecodeColumns);

// Bytes of shared memory that sum_over_rows needs.
inline constexpr int sum_bytes(int tokens) { return kDecodeWarps * tokens * static_cast<int>(kPanel * sizeof(int)); }

// Calls launch(integral_constant) with the number of tokens that a block multiplies.
template <typename Launch>
void by_tokens(int count, Launch launch) {
  if (count == 1) return launch(std::integral_constant<int, 1>());
  if (count == 2) return launch(std::integral_constant<int, 2>());
  if (count <= 4) return launch(std::integral_constant<int, 4>());
  if (count <= 8) return launch(std::integral_constant<int, 8>());
  launch(std::integral_constant<int, 16>());
}

// Reduces the sums of all threads. `sums`: this thread's. `totals`: shared memory, [warps][tokens][kPanel]; the first
// [tokens][kPanel] become the sums over all threads, each written by the thread that reads it in finish_panel.
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
