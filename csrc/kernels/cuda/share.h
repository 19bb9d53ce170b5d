// What blocks of threads do of a weight that is walked in panels: they divide its inputs, and take 64 groups at a time.
#pragma once

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/device.h"

namespace mempool::kernels::cuda {

inline constexpr int kDecodeThreads = 256;
inline constexpr int kDecodeWarps = kDecodeThreads / kWarp;

inline constexpr int kGroupsOfChunk = 64;
inline constexpr int kChunkBytes = kGroupsOfChunk * static_cast<int>(kPanel * kGroup);

// Units [first, last) of `units`: part `index` of `count`.
struct Share {
  int first;
  int last;
};
__device__ __forceinline__ Share share_of(int units, unsigned index, unsigned count) {
  const auto begin = [&](unsigned i) { return static_cast<int>(static_cast<std::int64_t>(units) * i / count); };
  return {begin(index), begin(index + 1)};
}

}  // namespace mempool::kernels::cuda
