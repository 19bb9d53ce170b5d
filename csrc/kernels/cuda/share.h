// How blocks of threads divide the inputs of a weight among them, and the chunk of 64 groups that they work on at a
// time.
#pragma once

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/device.h"

namespace mempool::kernels::cuda {

inline constexpr int kDecodeThreads = 256;
inline constexpr int kDecodeWarps = kDecodeThreads / kWarp;

inline constexpr int kGroupsOfChunk = 64;
inline constexpr int kChunkBytes = kGroupsOfChunk * static_cast<int>(kPanel * kGroup);

// A block's share of the inputs, in units [first, last).
struct Share {
  int first;
  int last;
};
// Part `index` of `count` nearly equal parts.
__device__ __forceinline__ Share share_of(int units, unsigned index, unsigned count) {
  const auto begin = [&](unsigned i) { return static_cast<int>(static_cast<std::int64_t>(units) * i / count); };
  return {begin(index), begin(index + 1)};
}

}  // namespace mempool::kernels::cuda
