// The products of a decode kernel for a sparse weight, with a chunk of 64 groups that was expanded in shared memory.
#pragma once

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/columns.h"

namespace mempool::kernels::cuda {

// Adds the products of a chunk for all tokens. `dense`: [kGroupsOfChunk][kPanel][kGroup].
template <int tokens>
__device__ __forceinline__ void add_chunk(const unsigned char* dense, const DeviceTokens& input, int first_token,
                                          int stride, int first_group, int groups, int (&sums)[tokens][4]) {
  const int column = static_cast<int>(threadIdx.x) % kDecodeColumns;
  for (int group = static_cast<int>(threadIdx.x) / kDecodeColumns; group < kGroupsOfChunk; group += kDecodeRows) {
    if (first_group + group >= groups) break;
    const int4 weight = reinterpret_cast<const int4*>(dense)[group * kDecodeColumns + column];
    const std::int8_t* at = input.values + static_cast<std::int64_t>(first_token) * stride + (first_group + group) * 4;
#pragma unroll
    for (int token = 0; token < tokens; ++token) {
      const int word = __ldg(reinterpret_cast<const int*>(at));
      if (first_token + token + 1 < input.count) at += stride;  // else the last token again, whose sums are not read
      sums[token][0] = __dp4a(weight.x, word, sums[token][0]);
      sums[token][1] = __dp4a(weight.y, word, sums[token][1]);
      sums[token][2] = __dp4a(weight.z, word, sums[token][2]);
      sums[token][3] = __dp4a(weight.w, word, sums[token][3]);
    }
  }
}

}  // namespace mempool::kernels::cuda
