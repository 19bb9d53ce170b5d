// The GEMV of a block4 weight, for up to 16 tokens in a pass. It works as bitmap_decode.cu does, but each output has
// its own mask and values (block4_chunk.h). Occupancy: 2 blocks of 256 threads on a multiprocessor at least (128
// registers, 32 KiB of shared memory).
#include "kernels/cuda/block4_chunk.h"
#include "kernels/cuda/block4_decode.h"
#include "kernels/cuda/chunk.h"

namespace mempool::kernels::cuda {
namespace {

template <int tokens>
__global__ void __launch_bounds__(kDecodeThreads, dot_product_blocks(tokens))
    block4_decode(BlockWeights weights, DeviceTokens input, Output out, Partial partial) {
  MEMPOOL_SHARED_MEMORY(shared);
  const int groups = static_cast<int>(groups_of(weights.inputs));
  const int words = static_cast<int>(block_words(weights.inputs));
  const int stride = token_bytes(static_cast<int>(weights.inputs));
  const int first_token = static_cast<int>(blockIdx.z) * tokens;
  const Share share = share_of(words, blockIdx.y, gridDim.y);
  BlockExpander expander(weights, static_cast<int>(blockIdx.x), share.first);
  int sums[tokens][4] = {};
  for (int word = share.first; word < share.last; ++word) {
    expander.expand(word, reinterpret_cast<int*>(shared));
    __syncthreads();
    add_chunk<tokens>(shared, input, first_token, stride, word * kGroupsOfChunk, groups, sums);
    __syncthreads();  // no thread reads this word any more: the next one may overwrite it
  }
  int* const totals = reinterpret_cast<int*>(shared);
  sum_over_rows<tokens>(sums, totals);
  finish_panel<tokens>(weights, input, out, partial, first_token, totals, totals + tokens * kPanel);
}

}  // namespace

void block4_decode_linear(const BlockWeights& weights, const DeviceTokens& input, const Output& out,
                          const Partial& partial, int splits, cudaStream_t stream) {
  by_tokens(input.count, [&](auto tokens) {
    constexpr int kTokens = decltype(tokens)::value;
    constexpr int kSums = sum_bytes(kTokens);
    constexpr int kSharedBytes = kSums > kChunkBytes ? kSums : kChunkBytes;
    static_assert(kSharedBytes <= 32 * 1024);
    MEMPOOL_LAUNCH(block4_decode<kTokens>, decode_grid(weights.outputs, input.count, kTokens, splits), kDecodeThreads,
                   kSharedBytes, stream, weights, input, out, partial);
  });
}

}  // namespace mempool::kernels::cuda
