// The GEMV of a bitmap weight, for up to 16 tokens in a pass: a block expands 64 groups of a panel at a time in shared
// memory (bitmap_chunk.h), and then multiplies them as dense_decode.cu does. Occupancy: 2 blocks of 256 threads on a
// multiprocessor at least (128 registers, 33 KiB of shared memory).
#include "kernels/cuda/bitmap_chunk.h"
#include "kernels/cuda/bitmap_decode.h"
#include "kernels/cuda/chunk.h"

namespace mempool::kernels::cuda {
namespace {

// Shared memory: the dense weights of a chunk, then that of the expander. At the end sums take the place of both.
constexpr int kDecodeBytes = kChunkBytes + kExpanderBytes;

template <int tokens>
__global__ void __launch_bounds__(kDecodeThreads, dot_product_blocks(tokens))
    bitmap_decode(BitmapWeights weights, DeviceTokens input, Output out, Partial partial) {
  MEMPOOL_SHARED_MEMORY(shared);
  const int groups = static_cast<int>(groups_of(weights.inputs));
  const int stride = token_bytes(static_cast<int>(weights.inputs));
  const int first_token = static_cast<int>(blockIdx.z) * tokens;
  const Share share = share_of((groups + kGroupsOfChunk - 1) / kGroupsOfChunk, blockIdx.y, gridDim.y);
  BitmapExpander expander(weights, static_cast<int>(blockIdx.x), share.first, shared + kChunkBytes);
  int sums[tokens][4] = {};
  for (int chunk = share.first; chunk < share.last; ++chunk) {
    expander.expand(chunk, reinterpret_cast<int4*>(shared) + threadIdx.x * 4);
    __syncthreads();
    add_chunk<tokens>(shared, input, first_token, stride, chunk * kGroupsOfChunk, groups, sums);
  }
  __syncthreads();
  int* const totals = reinterpret_cast<int*>(shared);
  sum_over_rows<tokens>(sums, totals);
  finish_panel<tokens>(weights, input, out, partial, first_token, totals, totals + tokens * kPanel);
}

}  // namespace

void bitmap_decode_linear(const BitmapWeights& weights, const DeviceTokens& input, const Output& out,
                          const Partial& partial, int splits, cudaStream_t stream) {
  by_tokens(input.count, [&](auto tokens) {
    constexpr int kTokens = decltype(tokens)::value;
    constexpr int kSums = sum_bytes(kTokens);
    constexpr int kSharedBytes = kSums > kDecodeBytes ? kSums : kDecodeBytes;
    static_assert(kSharedBytes <= 33 * 1024);
    MEMPOOL_LAUNCH(bitmap_decode<kTokens>, decode_grid(weights.outputs, input.count, kTokens, splits), kDecodeThreads,
                   kSharedBytes, stream, weights, input, out, partial);
  });
}

}  // namespace mempool::kernels::cuda
