// The GEMV of a 2:4 weight, for up to 32 tokens in a pass, on sparse tensor cores. These are far from busy, but take
// the packed weight as it is, so that nothing is expanded. A block computes 64 outputs, four tiles; two warps share a
// tile's inputs. Each warp copies weights ahead into a ring buffer of its own in shared memory, and loads tokens by way
// of the first-level cache. Occupancy: 3 blocks of 256 threads on a multiprocessor at least (80 registers, 25 KiB of
// shared memory).
#include <type_traits>

#include "kernels/cuda/occupancy.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/sparse24_decode.h"
#include "kernels/cuda/split.h"

namespace mempool::kernels::cuda {
namespace {

constexpr int kColumn = 8;  // tokens of an instruction
constexpr int kTiles = static_cast<int>(kPanel / kSparse24Rows);
constexpr int kParts = kDecodeWarps / kTiles;
constexpr int kAhead = 4;  // steps whose weights are being copied
constexpr int kSlots = kAhead + 1;
constexpr int kSlotBytes = static_cast<int>(kSparse24Bytes) + kWarp * 4;  // values, places
constexpr int kRingBytes = kSlots * kSlotBytes;

// A lane's fragment of 64 inputs of eight tokens; zeros beyond the last token and input.
__device__ __forceinline__ LongColumns columns_of(const DeviceTokens& tokens, int stride, int first, int step) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int token = first + lane / 4;
  const int input = step * static_cast<int>(kSparse24Inputs) + lane % 4 * static_cast<int>(kSparse24LaneBytes);
  if (token >= tokens.count || input >= stride) return {};
  return registers_of<LongColumns>(
      __ldg(reinterpret_cast<const int4*>(tokens.values + static_cast<std::int64_t>(token) * stride + input)));
}

// The ring buffer of a warp, through which the weights of its steps go.
class Steps {
 public:
  // All lanes of the warp call each function together. The steps are first, first + kParts, ... before `end` of a tile.
  __device__ __forceinline__ Steps(const Sparse24Weights& weights, std::int64_t tile, int first, int end,
                                   unsigned char* ring)
      : weights_(weights), at_(tile * tile_steps(weights.inputs)), next_(first), end_(end), ring_(ring) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) start_copies();
  }

  // Waits for the next step, and starts the copies of the one kAhead steps later.
  __device__ __forceinline__ void take(Rows& rows, unsigned& places) {
    const unsigned char* const slot = ring_ + taken_ * kSlotBytes;
    taken_ = taken_ + 1 == kSlots ? 0 : taken_ + 1;
    wait_for_copies<kAhead - 1>();
    __syncwarp();  // all lanes have their copies, and no lane reads the slot any more that is written next
    start_copies();
    rows = registers_of<Rows>(reinterpret_cast<const int4*>(slot)[lane()]);
    places = reinterpret_cast<const unsigned*>(slot + kSparse24Bytes)[lane()];
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

  __device__ __forceinline__ void start_copies() {
    constexpr int kPlaceCopies = kWarp * 4 / 16;
    if (next_ < end_) {
      unsigned char* const slot = ring_ + started_ * kSlotBytes;
      const std::int64_t from = (at_ + next_) * kSparse24Lanes;
      copy_async(slot + lane() * 16, weights_.values + (from + lane()) * kSparse24LaneBytes, true);
      if (lane() < kPlaceCopies) {
        copy_async(slot + kSparse24Bytes + lane() * 16, weights_.places + from + lane() * 4, true);
      }
    }
    commit_copies();
    next_ += kParts;
    started_ = started_ + 1 == kSlots ? 0 : started_ + 1;
  }

  const Sparse24Weights& weights_;
  std::int64_t at_;  // the tile's first step
  int next_;
  int end_;
  unsigned char* ring_;
  int started_ = 0;  // the slot of the next copies
  int taken_ = 0;    // the slot of the next take()
};

// Reduces the sums of all parts. `totals`: shared memory, [parts][tokens][kPanel]; the first [tokens][kPanel] become
// the sums over all inputs, each written by the thread that reads it in finish_panel.
template <int columns>
__device__ __forceinline__ void sum_over_parts(const Sums (&sums)[columns], int tile, int part, int* totals) {
  constexpr int kSums = columns * kColumn * static_cast<int>(kPanel);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < columns * 4; ++i) {
    const int token = i / 4 * kColumn + lane % 4 * 2 + i % 2;
    const int output = tile * static_cast<int>(kSparse24Rows) + lane / 4 + i % 4 / 2 * 8;
    totals[part * kSums + token * static_cast<int>(kPanel) + output] = sums[i / 4].of[i % 4];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kSums; i += kDecodeThreads) {
    for (int other = 1; other < kParts; ++other) totals[i] += totals[other * kSums + i];
  }
}

template <int columns>
__global__ void __launch_bounds__(kDecodeThreads, sparse24_blocks(columns* kColumn))
    sparse24_decode(Sparse24Weights weights, DeviceTokens input, Output out, Partial partial) {
  MEMPOOL_SHARED_MEMORY(shared);
  constexpr int kTokens = columns * kColumn;
  const int steps = static_cast<int>(tile_steps(weights.inputs));
  const int stride = token_bytes(static_cast<int>(weights.inputs));
  const int first_token = static_cast<int>(blockIdx.z) * kTokens;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int of_panel = warp % kTiles;
  const int part = warp / kTiles;
  const std::int64_t tile = static_cast<std::int64_t>(blockIdx.x) * kTiles + of_panel;
  const Share share = share_of(steps, blockIdx.y, gridDim.y);
  const int end = tile < tiles_of(weights.outputs) ? share.last : share.first;  // the last panel may have fewer tiles
  Steps ring(weights, tile, share.first + part, end, shared + warp * kRingBytes);
  Sums sums[columns] = {};
  for (int step = share.first + part; step < end; step += kParts) {
    LongColumns taken[columns];
#pragma unroll
    for (int i = 0; i < columns; ++i) taken[i] = columns_of(input, stride, first_token + i * kColumn, step);
    Rows rows;
    unsigned places;
    ring.take(rows, places);
#pragma unroll
    for (int i = 0; i < columns; ++i) mma_sparse_s8(sums[i], rows, taken[i], places);
  }
  __syncthreads();  // no warp reads its ring any more: sums take its place
  int* const totals = reinterpret_cast<int*>(shared);
  sum_over_parts(sums, of_panel, part, totals);
  finish_panel<kTokens>(weights, input, out, partial, first_token, totals, totals + kTokens * kPanel);
}

}  // namespace

void sparse24_decode_linear(const Sparse24Weights& weights, const DeviceTokens& input, const Output& out,
                            const Partial& partial, int splits, cudaStream_t stream) {
  const auto launch = [&](auto columns) {
    constexpr int kColumns = decltype(columns)::value;
    constexpr int kTokens = kColumns * kColumn;
    constexpr int kTotals = kParts * kTokens * static_cast<int>(kPanel * sizeof(int));
    constexpr int kRings = kDecodeWarps * kRingBytes;
    constexpr int kSharedBytes = kTotals > kRings ? kTotals : kRings;
    static_assert(kSharedBytes <= 25 * 1024);
    MEMPOOL_LAUNCH(sparse24_decode<kColumns>, decode_grid(weights.outputs, input.count, kTokens, splits),
                   kDecodeThreads, kSharedBytes, stream, weights, input, out, partial);
  };
  if (input.count <= kColumn) return launch(std::integral_constant<int, 1>());
  if (input.count <= 2 * kColumn) return launch(std::integral_constant<int, 2>());
  launch(std::integral_constant<int, 4>());
}

}  // namespace mempool::kernels::cuda
