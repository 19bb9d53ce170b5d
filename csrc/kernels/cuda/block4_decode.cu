// Block-sparse int8, blocks of 4 inputs, for few tokens: as bitmap_decode.cu, but each output has its own bits and
// values. A block of threads takes 64 groups of 64 outputs at a time, which is one word of bits for each output: four
// threads share it, and put the blocks of 16 groups each in their places. Occupancy: 2 blocks of 256 threads on
// a multiprocessor at least (128 registers, 32 KiB of shared memory).
#include "kernels/cuda/block4_decode.h"
#include "kernels/cuda/chunk.h"
#include "kernels/cuda/split.h"

namespace mempool::kernels::cuda {
namespace {

constexpr int kSharers = kDecodeThreads / static_cast<int>(kPanel);  // threads of an output
constexpr int kGroupsOfThread = kGroupsOfChunk / kSharers;
static_assert(kGroupsOfChunk == 64);

template <int tokens>
__global__ void __launch_bounds__(kDecodeThreads, 2)
    block4_decode(BlockWeights weights, DeviceTokens input, Output out, Partial partial) {
  MEMPOOL_SHARED_MEMORY(shared);
  const int groups = static_cast<int>(groups_of(weights.inputs));
  const int words = static_cast<int>(block_words(weights.inputs));
  const int stride = token_bytes(static_cast<int>(weights.inputs));
  const int first_token = static_cast<int>(blockIdx.z) * tokens;
  const int of_panel = static_cast<int>(threadIdx.x) % static_cast<int>(kPanel);
  const int part = static_cast<int>(threadIdx.x) / static_cast<int>(kPanel);
  const std::int64_t output = static_cast<std::int64_t>(blockIdx.x) * kPanel + of_panel;
  const bool exists = output < weights.outputs;
  const auto* const masks = reinterpret_cast<const unsigned long long*>(weights.masks) + (exists ? output * words : 0);
  const auto* next = reinterpret_cast<const int*>(weights.values) + (exists ? weights.offsets[output] : 0);
  const Share share = share_of(words);
  for (int word = 0; exists && word < share.first; ++word) next += __popcll(__ldg(masks + word));
  int sums[tokens][4] = {};
  for (int word = share.first; word < share.last; ++word) {
    const unsigned long long mask = exists ? __ldg(masks + word) : 0;
    const int* block = next + __popcll(mask & ((1ULL << part * kGroupsOfThread) - 1));
    auto* const to = reinterpret_cast<int*>(shared) + part * kGroupsOfThread * kPanel + of_panel;
#pragma unroll
    for (int i = 0; i < kGroupsOfThread; ++i) {
      const bool is_there = (mask >> (part * kGroupsOfThread + i) & 1U) != 0;
      to[i * kPanel] = is_there ? __ldg(block) : 0;
      if (is_there) ++block;
    }
    next += __popcll(mask);
    __syncthreads();
    add_chunk<tokens>(shared, input, first_token, stride, word * kGroupsOfChunk, groups, sums);
    __syncthreads();  // nobody reads any more what is written next
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
