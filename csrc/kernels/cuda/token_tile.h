// The pipeline of the GEMMs: tiles of 128 tokens by 64 inputs are copied to shared memory in stages, while an earlier
// stage is multiplied.
#pragma once

#include "kernels/cuda/finish.h"
#include "kernels/cuda/occupancy.h"
#include "kernels/cuda/ptx.h"

namespace mempool::kernels::cuda {

inline constexpr int kTileThreads = 256;
inline constexpr int kTileTokens = 128;
inline constexpr int kTileOutputs = 128;
inline constexpr int kTileInputs = 64;  // of a stage
inline constexpr int kStages = 4;       // three are copied while one is multiplied
inline constexpr int kChunk = 16;       // bytes of a copy

// Starts the copies of kTileInputs inputs from `first_input` on, of kTileTokens tokens from `first` on; zeros beyond
// the last input and token. `pitch`: bytes from a token to the next in shared memory.
template <int pitch>
__device__ __forceinline__ void copy_tokens(const DeviceTokens& tokens, int stride, int first, int first_input,
                                            unsigned char* to) {
  constexpr int kChunks = kTileInputs / kChunk;
#pragma unroll
  for (int i = threadIdx.x; i < kTileTokens * kChunks; i += kTileThreads) {
    const int row = i / kChunks;
    const int input = first_input + i % kChunks * kChunk;
    const bool exists = first + row < tokens.count && input < stride;
    const std::int8_t* const from =
        exists ? tokens.values + static_cast<std::int64_t>(first + row) * stride + input : tokens.values;
    copy_async(to + row * pitch + i % kChunks * kChunk, from, exists);
  }
}

// Multiplies stage after stage: copy(stage, slot) starts the copies of a stage to a slot of the ring buffer, and
// multiply(slot) finds them complete.
template <typename Copy, typename Multiply>
__device__ __forceinline__ void through_stages(int stages, Copy copy, Multiply multiply) {
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < stages) copy(stage, stage);
    commit_copies();
  }
  for (int stage = 0; stage < stages; ++stage) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // all threads have their copies, and none reads the slot any more that is written next
    const int next = stage + kStages - 1;
    if (next < stages) copy(next, next % kStages);
    commit_copies();
    multiply(stage % kStages);
  }
}

}  // namespace mempool::kernels::cuda
