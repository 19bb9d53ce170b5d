// Bitmap-sparse int8 for few tokens: sparse weights are loaded and dense ones computed. A block takes 64 groups of a
// panel at a time. Each thread counts the bits of one mask, a scan over the block says where its values begin, the
// values of all are copied as they lie, and each thread puts those of its mask in their places; then the products are
// those of dense_decode.cu. The masks before a block's share are counted first: where its values begin is not written
// down, for the format is the CPU's. Occupancy: 2 blocks of 256
// threads on a multiprocessor at least (128 registers, 33 KiB of shared memory).
#include "kernels/cuda/bitmap_decode.h"
#include "kernels/cuda/chunk.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/split.h"

namespace mempool::kernels::cuda {
namespace {

constexpr int kVectors = static_cast<int>(kVectorsOfPanel);
static_assert(kGroupsOfChunk * kVectors == kDecodeThreads);  // a mask for each thread
constexpr int kCopyBytes = 16;

// Shared memory, in bytes: dense weights of a chunk, packed ones (and what lies before the first and behind the last
// within 16 bytes and a word), counts of warps, and how to spread bytes by four bits. Sums come last, over all of it.
constexpr int kPackedAt = kChunkBytes;
constexpr int kCountsAt = kPackedAt + kChunkBytes + 32;
constexpr int kSelectorsAt = kCountsAt + kDecodeWarps * 4;
constexpr int kDecodeBytes = kSelectorsAt + 16 * 4;

// The __byte_perm that puts bytes 0, 1, ... where bits are, and zeros elsewhere.
__device__ __forceinline__ unsigned selector_of(unsigned bits) {
  unsigned selector = 0;
  for (unsigned i = 0, next = 0; i < 4; ++i) selector |= ((bits >> i & 1U) != 0 ? next++ : 4U) << 4 * i;
  return selector;
}

// The sum over all threads before this one, and over all. `counts`: a word for each warp.
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

// Puts the 64 bytes of a mask where they belong. `packed`: the values, from byte `from` on.
__device__ __forceinline__ void expand(unsigned long long mask, const unsigned char* packed, int from,
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

// How many values of a panel lie before the chunk.
__device__ __forceinline__ int count_before(const unsigned long long* masks, int first_chunk, int* counts) {
  int count = 0;
  for (int i = threadIdx.x; i < first_chunk * kDecodeThreads; i += kDecodeThreads) count += __popcll(__ldg(masks + i));
  count = scan(count, counts).all;
  __syncthreads();  // nobody reads the counts any more
  return count;
}

template <int tokens>
__global__ void __launch_bounds__(kDecodeThreads, 2)
    bitmap_decode(BitmapWeights weights, DeviceTokens input, Output out, Partial partial) {
  MEMPOOL_SHARED_MEMORY(shared);
  int* const counts = reinterpret_cast<int*>(shared + kCountsAt);
  unsigned* const selectors = reinterpret_cast<unsigned*>(shared + kSelectorsAt);
  const int groups = static_cast<int>(groups_of(weights.inputs));
  const int stride = token_bytes(static_cast<int>(weights.inputs));
  const int first_token = static_cast<int>(blockIdx.z) * tokens;
  const auto* const masks = reinterpret_cast<const unsigned long long*>(weights.masks) +
                            static_cast<std::int64_t>(blockIdx.x) * groups * kVectors;
  const std::int8_t* const values = weights.values + static_cast<std::int64_t>(weights.offsets[blockIdx.x]) * kVector;
  const Share share = share_of((groups + kGroupsOfChunk - 1) / kGroupsOfChunk);
  if (threadIdx.x < 16) selectors[threadIdx.x] = selector_of(threadIdx.x);
  int next = count_before(masks, share.first, counts);
  int sums[tokens][4] = {};
  for (int chunk = share.first; chunk < share.last; ++chunk) {
    const int at = chunk * kDecodeThreads + static_cast<int>(threadIdx.x);
    const unsigned long long mask = at < groups * kVectors ? __ldg(masks + at) : 0;
    const Scan places = scan(__popcll(mask), counts);
    const int skipped = next % kCopyBytes;
    for (int i = threadIdx.x * kCopyBytes; i < skipped + places.all; i += kDecodeThreads * kCopyBytes) {
      copy_async(shared + kPackedAt + i, values + next - skipped + i, true);
    }
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    expand(mask, shared + kPackedAt, skipped + places.before, selectors,
           reinterpret_cast<int4*>(shared) + threadIdx.x * 4);
    __syncthreads();
    add_chunk<tokens>(shared, input, first_token, stride, chunk * kGroupsOfChunk, groups, sums);
    next += places.all;
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
