// The GEMV of a dense weight, for up to 16 tokens in a pass: each thread loads 16 bytes of the weight, once, and
// multiplies them with all tokens by __dp4a, whose operands are words of four inputs. Loads are coalesced in the CPU's
// panels: 16 neighbouring threads read the 64 outputs of a group. Occupancy: 2 blocks of 256 threads on a
// multiprocessor at least (128 registers, 32 KiB of shared memory).
#include "kernels/cuda/columns.h"
#include "kernels/cuda/dense_decode.h"
#include "kernels/cuda/ptx.h"

namespace mempool::kernels::cuda {
namespace {

constexpr int kGroupsOfStep = 4;  // 16 inputs, one load of a token

// Adds the products of one step, four groups by four outputs, for all tokens.
template <int tokens>
__device__ __forceinline__ void add_step(const int4 (&weight)[kGroupsOfStep], const DeviceTokens& input,
                                         int first_token, int stride, int step, int (&sums)[tokens][4]) {
  const std::int8_t* at = input.values + static_cast<std::int64_t>(first_token) * stride + step * 16;
#pragma unroll
  for (int token = 0; token < tokens; ++token) {
    const int4 word = __ldg(reinterpret_cast<const int4*>(at));
    if (first_token + token + 1 < input.count) at += stride;  // else the last token again, whose sums are not read
    const int words[kGroupsOfStep] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int group = 0; group < kGroupsOfStep; ++group) {
      sums[token][0] = __dp4a(weight[group].x, words[group], sums[token][0]);
      sums[token][1] = __dp4a(weight[group].y, words[group], sums[token][1]);
      sums[token][2] = __dp4a(weight[group].z, words[group], sums[token][2]);
      sums[token][3] = __dp4a(weight[group].w, words[group], sums[token][3]);
    }
  }
}

template <int tokens>
__global__ void __launch_bounds__(kDecodeThreads, dot_product_blocks(tokens))
    dense_decode(DenseWeights weights, DeviceTokens input, Output out, Partial partial) {
  MEMPOOL_SHARED_MEMORY(shared);
  int* const totals = reinterpret_cast<int*>(shared);
  const int groups = static_cast<int>(groups_of(weights.inputs));
  const int stride = token_bytes(static_cast<int>(weights.inputs));
  const int column = static_cast<int>(threadIdx.x) % kDecodeColumns;
  const int first_token = static_cast<int>(blockIdx.z) * tokens;
  const auto* const panel = reinterpret_cast<const int4*>(weights.panels) +
                            static_cast<std::int64_t>(blockIdx.x) * groups * kDecodeColumns + column;
  const Share share = share_of((groups + kGroupsOfStep - 1) / kGroupsOfStep, blockIdx.y, gridDim.y);
  int sums[tokens][4] = {};
  for (int step = share.first + static_cast<int>(threadIdx.x) / kDecodeColumns; step < share.last;
       step += kDecodeRows) {
    int4 weight[kGroupsOfStep];
#pragma unroll
    for (int i = 0; i < kGroupsOfStep; ++i) {
      const int group = step * kGroupsOfStep + i;
      weight[i] = group < groups ? load_once(panel + group * kDecodeColumns) : make_int4(0, 0, 0, 0);
    }
    add_step<tokens>(weight, input, first_token, stride, step, sums);
  }
  sum_over_rows<tokens>(sums, totals);
  finish_panel<tokens>(weights, input, out, partial, first_token, totals, totals + tokens * kPanel);
}

}  // namespace

void dense_decode_linear(const DenseWeights& weights, const DeviceTokens& input, const Output& out,
                         const Partial& partial, int splits, cudaStream_t stream) {
  by_tokens(input.count, [&](auto tokens) {
    constexpr int kTokens = decltype(tokens)::value;
    constexpr int kSharedBytes = sum_bytes(kTokens);
    static_assert(kSharedBytes <= 32 * 1024);
    MEMPOOL_LAUNCH(dense_decode<kTokens>, decode_grid(weights.outputs, input.count, kTokens, splits), kDecodeThreads,
                   kSharedBytes, stream, weights, input, out, partial);
  });
}

}  // namespace mempool::kernels::cuda
