// 2:4 sparse int8 for few tokens, on sparse tensor cores: they are far from busy, but take weights as they lie, and
// nothing is expanded. A block has 64 outputs, four tiles; two warps share a tile's inputs. Each loads what its lanes
// need straight into registers, tokens too. Occupancy: 3 blocks of 256 threads on a multiprocessor, 80 registers and
// 16 KiB of shared memory.
#include <type_traits>

#include "kernels/cuda/ptx.h"
#include "kernels/cuda/sparse24_decode.h"
#include "kernels/cuda/split.h"

namespace mempool::kernels::cuda {
namespace {

constexpr int kColumn = 8;  // tokens of an instruction
constexpr int kTiles = static_cast<int>(kPanel / kTileRows);
constexpr int kParts = kDecodeWarps / kTiles;

// What a lane needs of 64 inputs of eight tokens; zeros beyond either end.
__device__ __forceinline__ LongColumns columns_of(const DeviceTokens& tokens, int stride, int first, int step) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int token = first + lane / 4;
  const int input = step * static_cast<int>(kStepInputs) + lane % 4 * static_cast<int>(kLaneBytes);
  if (token >= tokens.count || input >= stride) return {};
  const int4 loaded =
      __ldg(reinterpret_cast<const int4*>(tokens.values + static_cast<std::int64_t>(token) * stride + input));
  return {{static_cast<unsigned>(loaded.x), static_cast<unsigned>(loaded.y), static_cast<unsigned>(loaded.z),
           static_cast<unsigned>(loaded.w)}};
}

// Sums of all parts, from lanes to `totals`: shared, [parts][tokens][kPanel]; the first of them become the whole sums,
// each written by the thread that finish_panel has read it.
template <int columns>
__device__ __forceinline__ void sum_over_parts(const Sums (&sums)[columns], int tile, int part, int* totals) {
  constexpr int kSums = columns * kColumn * static_cast<int>(kPanel);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < columns * 4; ++i) {
    const int token = i / 4 * kColumn + lane % 4 * 2 + i % 2;
    const int output = tile * static_cast<int>(kTileRows) + lane / 4 + i % 4 / 2 * 8;
    totals[part * kSums + token * static_cast<int>(kPanel) + output] = sums[i / 4].of[i % 4];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kSums; i += kDecodeThreads) {
    for (int other = 1; other < kParts; ++other) totals[i] += totals[other * kSums + i];
  }
}

template <int columns>
__global__ void __launch_bounds__(kDecodeThreads, 3)
    sparse24_decode(Sparse24Weights weights, DeviceTokens input, Output out, Partial partial) {
  MEMPOOL_SHARED_MEMORY(shared);
  constexpr int kTokens = columns * kColumn;
  // Steps whose loads are under way: more do not fit the registers.
  [[maybe_unused]] constexpr int kAhead = columns < 4 ? 4 : 2;
  const int steps = static_cast<int>(tile_steps(weights.inputs));
  const int stride = token_bytes(static_cast<int>(weights.inputs));
  const int first_token = static_cast<int>(blockIdx.z) * kTokens;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int of_panel = warp % kTiles;
  const int part = warp / kTiles;
  const std::int64_t tile = static_cast<std::int64_t>(blockIdx.x) * kTiles + of_panel;
  const Share share = share_of(steps);
  const int end = tile < tiles_of(weights.outputs) ? share.last : share.first;  // there are not always four
  Sums sums[columns] = {};
#pragma unroll kAhead
  for (int step = share.first + part; step < end; step += kParts) {
    const std::int64_t at = (tile * steps + step) * kTileLanes + lane;
    const int4 held = load_once(weights.values + at * kLaneBytes);
    const unsigned places = __ldg(weights.places + at);
    const Rows rows = {{static_cast<unsigned>(held.x), static_cast<unsigned>(held.y), static_cast<unsigned>(held.z),
                        static_cast<unsigned>(held.w)}};
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      mma_sparse_s8(sums[i], rows, columns_of(input, stride, first_token + i * kColumn, step), places);
    }
  }
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
    constexpr int kSharedBytes = kParts * kTokens * static_cast<int>(kPanel * sizeof(int));
    static_assert(kSharedBytes <= 16 * 1024);
    MEMPOOL_LAUNCH(sparse24_decode<kColumns>, decode_grid(weights.outputs, input.count, kTokens, splits),
                   kDecodeThreads, kSharedBytes, stream, weights, input, out, partial);
  };
  if (input.count <= kColumn) return launch(std::integral_constant<int, 1>());
  if (input.count <= 2 * kColumn) return launch(std::integral_constant<int, 2>());
  launch(std::integral_constant<int, 4>());
}

}  // namespace mempool::kernels::cuda
