// 2:4 sparse int8 for few tokens, on sparse tensor cores: they are far from busy, but take weights as they lie, and
// nothing is expanded. A block has 64 outputs, four tiles; two warps share a tile's inputs. Each warp copies ahead into
// a ring of its own in shared memory, and loads tokens from the first cache as it goes. Occupancy: 3 blocks of 256
// threads on a multiprocessor at least (80 registers, 25 KiB of shared memory).
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
constexpr int kAhead = 4;  // steps whose weights are under way
constexpr int kSlots = kAhead + 1;
constexpr int kSlotBytes = static_cast<int>(kSparse24Bytes) + kWarp * 4;  // values, places
constexpr int kRingBytes = kSlots * kSlotBytes;

// What a lane needs of 64 inputs of eight tokens; zeros beyond either end.
__device__ __forceinline__ LongColumns columns_of(const DeviceTokens& tokens, int stride, int first, int step) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int token = first + lane / 4;
  const int input = step * static_cast<int>(kSparse24Inputs) + lane % 4 * static_cast<int>(kSparse24LaneBytes);
  if (token >= tokens.count || input >= stride) return {};
  return registers_of<LongColumns>(
      __ldg(reinterpret_cast<const int4*>(tokens.values + static_cast<std::int64_t>(token) * stride + input)));
}

// The steps of a warp on their way through its ring.
class Steps {
 public:
  // The lanes of a warp call everything together. Steps first, first + kParts, ... before `end` of a tile.
  __device__ __forceinline__ Steps(const Sparse24Weights& weights, std::int64_t tile, int first, int end,
                                   unsigned char* ring)
      : weights_(weights), at_(tile * tile_steps(weights.inputs)), next_(first), end_(end), ring_(ring) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) ask();
  }

  // Waits for the next step, and asks for the one that comes kAhead later.
  __device__ __forceinline__ void take(Rows& rows, unsigned& places) {
    const unsigned char* const slot = ring_ + taken_ * kSlotBytes;
    taken_ = taken_ + 1 == kSlots ? 0 : taken_ + 1;
    wait_for_copies<kAhead - 1>();
    __syncwarp();  // all lanes have their copies, and nobody reads any more what is written next
    ask();
    rows = registers_of<Rows>(reinterpret_cast<const int4*>(slot)[lane()]);
    places = reinterpret_cast<const unsigned*>(slot + kSparse24Bytes)[lane()];
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

  __device__ __forceinline__ void ask() {
    constexpr int kPlaceCopies = kWarp * 4 / 16;
    if (next_ < end_) {
      unsigned char* const slot = ring_ + asked_ * kSlotBytes;
      const std::int64_t from = (at_ + next_) * kSparse24Lanes;
      copy_async(slot + lane() * 16, weights_.values + (from + lane()) * kSparse24LaneBytes, true);
      if (lane() < kPlaceCopies) {
        copy_async(slot + kSparse24Bytes + lane() * 16, weights_.places + from + lane() * 4, true);
      }
    }
    commit_copies();
    next_ += kParts;
    asked_ = asked_ + 1 == kSlots ? 0 : asked_ + 1;
  }

  const Sparse24Weights& weights_;
  std::int64_t at_;  // of the tile's steps
  int next_;
  int end_;
  unsigned char* ring_;
  int asked_ = 0;  // slots
  int taken_ = 0;
};

// Sums of all parts, from lanes to `totals`: shared, [parts][tokens][kPanel]; the first of them become the whole sums,
// each written by the thread that finish_panel has read it.
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
  const int end = tile < tiles_of(weights.outputs) ? share.last : share.first;  // there are not always four
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
  __syncthreads();  // nobody has a ring any more
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
