// Expands a panel of a block4 weight to dense, by a block of threads, 64 groups at a time: that is one word of an
// output's mask. Four threads share the word, and each expands 16 groups.
#pragma once

#include "kernels/cuda/share.h"
#include "kernels/formats/block4.h"

namespace mempool::kernels::cuda {

class BlockExpander {
 public:
  __device__ __forceinline__ BlockExpander(const BlockWeights& weights, int panel, int first_word) {
    const std::int64_t output = static_cast<std::int64_t>(panel) * kPanel + of_panel();
    exists_ = output < weights.outputs;
    masks_ = reinterpret_cast<const unsigned long long*>(weights.masks) +
             (exists_ ? output * block_words(weights.inputs) : 0);
    next_ = reinterpret_cast<const int*>(weights.values) + (exists_ ? weights.offsets[output] : 0);
    for (int word = 0; exists_ && word < first_word; ++word) next_ += __popcll(__ldg(masks_ + word));
  }

  // Expands `word`, the next one, of which `groups` groups exist. `to`: [kGroupsOfChunk][kPanel], for the whole block.
  __device__ __forceinline__ void expand(int word, int* to, int groups = kGroupsOfChunk) {
    const unsigned long long mask = exists_ ? __ldg(masks_ + word) : 0;
    const int first = static_cast<int>(threadIdx.x) / static_cast<int>(kPanel) * kGroupsOfThread;
    const int* block = next_ + __popcll(mask & ((1ULL << first) - 1));
#pragma unroll
    for (int i = first; i < first + kGroupsOfThread; ++i) {
      const bool is_there = (mask >> i & 1U) != 0;
      if (i < groups) to[i * kPanel + of_panel()] = is_there ? __ldg(block) : 0;
      if (is_there) ++block;
    }
    next_ += __popcll(mask);
  }

 private:
  static constexpr int kSharers = kDecodeThreads / static_cast<int>(kPanel);  // threads of an output
  static constexpr int kGroupsOfThread = kGroupsOfChunk / kSharers;
  static_assert(kGroupsOfChunk == 64);

  static __device__ __forceinline__ int of_panel() { return static_cast<int>(threadIdx.x) % static_cast<int>(kPanel); }

  bool exists_;
  const unsigned long long* masks_;
  const int* next_;  // the next block of this output
};

}  // namespace mempool::kernels::cuda
