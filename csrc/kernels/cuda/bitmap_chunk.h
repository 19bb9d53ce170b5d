// Expands a panel of a bitmap weight to dense, by a block of threads, 64 groups at a time. Each thread counts the bits
// of one mask; a prefix sum over the block tells where its values begin; the block copies the values of all to shared
// memory, and each thread expands those of its mask. A block first counts the masks before its share: the format, which
// is the CPU's, does not store where the share's values begin.
#pragma once

#include "kernels/cuda/ptx.h"
#include "kernels/cuda/share.h"
#include "kernels/formats/bitmap.h"

namespace mempool::kernels::cuda {

inline constexpr int kVectors = static_cast<int>(kVectorsOfPanel);
static_assert(kGroupsOfChunk * kVectors == kDecodeThreads);  // a mask for each thread

// Shared memory, in bytes: the packed weights of a chunk (with the bytes before the first and behind the last that are
// copied with them), the counts of the warps, and a selector for each pattern of four bits.
inline constexpr int kCountsAt = kChunkBytes + 32;
inline constexpr int kSelectorsAt = kCountsAt + kDecodeWarps * 4;
inline constexpr int kExpanderBytes = kSelectorsAt + 16 * 4;

// The selector of __byte_perm that puts bytes 0, 1, ... where bits are set, and zeros elsewhere.
__device__ __forceinline__ unsigned selector_of(unsigned bits) {
  unsigned selector = 0;
  for (unsigned i = 0, next = 0; i < 4; ++i) selector |= ((bits >> i & 1U) != 0 ? next++ : 4U) << 4 * i;
  return selector;
}

// An exclusive prefix sum over the threads of the block: the sum before this thread, and over all. `counts`: a word of
// shared memory for each warp.
struct Scan {
  int before;
  int all;
};
__device__ __forceinline__ Scan scan(int count, int* counts) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  int up_to = count;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int other = __shfl_up_sync(kAllLanes, up_to, static_cast<unsigned>(distance));
    if (lane >= distance) up_to += other;
  }
  if (lane == kWarp - 1) counts[warp] = up_to;
  __syncthreads();
  Scan result = {up_to - count, 0};
#pragma unroll
  for (int i = 0; i < kDecodeWarps; ++i) {
    if (i < warp) result.before += counts[i];
    result.all += counts[i];
  }
  return result;
}

// Expands the 64 bytes of a mask to `to`. Its values begin at byte `from` of `packed`.
__device__ __forceinline__ void spread(unsigned long long mask, const unsigned char* packed, int from,
                                       const unsigned* selectors, int4* to) {
#pragma unroll 1  // else the sums of 16 tokens do not stay in registers
  for (int quarter = 0; quarter < 4; ++quarter) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned bits = static_cast<unsigned>(mask >> (quarter * 16 + i * 4)) & 0xFU;
      const auto* const at = reinterpret_cast<const unsigned*>(packed) + from / 4;
      const unsigned bytes = __funnelshift_r(at[0], at[1], static_cast<unsigned>(from % 4 * 8));
      words[i] = __byte_perm(bytes, 0, selectors[bits]);
      from += __popc(bits);
    }
    to[quarter] = make_int4(static_cast<int>(words[0]), static_cast<int>(words[1]), static_cast<int>(words[2]),
                            static_cast<int>(words[3]));
  }
}

class BitmapExpander {
 public:
  // All threads of the block call each function. `shared`: kExpanderBytes, aligned to 16.
  __device__ __forceinline__ BitmapExpander(const BitmapWeights& weights, int panel, int first_chunk,
                                            unsigned char* shared)
      : masks_(reinterpret_cast<const unsigned long long*>(weights.masks) +
               panel * groups_of(weights.inputs) * kVectorsOfPanel),
        values_(weights.values + static_cast<std::int64_t>(weights.offsets[panel]) * kVector),
        vectors_(static_cast<int>(groups_of(weights.inputs)) * kVectors),
        shared_(shared) {
    if (threadIdx.x < 16) selectors()[threadIdx.x] = selector_of(threadIdx.x);
    int count = 0;
    for (int i = threadIdx.x; i < first_chunk * kDecodeThreads; i += kDecodeThreads) {
      count += __popcll(__ldg(masks_ + i));
    }
    next_ = scan(count, counts()).all;
    __syncthreads();  // no thread reads the counts any more
  }

  // Expands `chunk`, the next one. `to`: the place of this thread's 64 bytes of it. Writes nothing beyond the panel.
  __device__ __forceinline__ void expand(int chunk, int4* to) {
    constexpr int kCopyBytes = 16;
    const int at = chunk * kDecodeThreads + static_cast<int>(threadIdx.x);
    const unsigned long long mask = at < vectors_ ? __ldg(masks_ + at) : 0;
    const Scan places = scan(__popcll(mask), counts());
    const int skipped = next_ % kCopyBytes;
    for (int i = threadIdx.x * kCopyBytes; i < skipped + places.all; i += kDecodeThreads * kCopyBytes) {
      copy_async(shared_ + i, values_ + next_ - skipped + i, true);
    }
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    if (at < vectors_) spread(mask, shared_, skipped + places.before, selectors(), to);
    next_ += places.all;
  }

 private:
  __device__ __forceinline__ int* counts() const { return reinterpret_cast<int*>(shared_ + kCountsAt); }
  __device__ __forceinline__ unsigned* selectors() const { return reinterpret_cast<unsigned*>(shared_ + kSelectorsAt); }

  const unsigned long long* masks_;
  const std::int8_t* values_;
  int vectors_;
  unsigned char* shared_;
  int next_;  // index of the next of the panel's values
};

}  // namespace mempool::kernels::cuda
