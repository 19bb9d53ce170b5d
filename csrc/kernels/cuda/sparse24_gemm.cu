// The GEMM of a 2:4 weight, for many tokens, on sparse tensor cores. The sparse operand of the instruction is its rows,
// so here rows are outputs and columns are tokens: a block computes a tile of 128 outputs by 128 tokens, a warp 64 by
// 32 of it. Occupancy: 2 blocks of 256 threads on a multiprocessor, 128 registers and 52 KiB of shared memory.
#include "kernels/cuda/sparse24_gemm.h"
#include "kernels/cuda/tile_split.h"
#include "kernels/cuda/token_tile.h"

namespace mempool::kernels::cuda {
namespace {

constexpr int kTokenPitch = kTileInputs;  // eight lanes read two rows of 64 bytes
constexpr int kTiles = kTileOutputs / static_cast<int>(kSparse24Rows);
constexpr int kValuesAt = kTileTokens * kTokenPitch;
constexpr int kPlacesAt = kValuesAt + kTiles * static_cast<int>(kSparse24Bytes);
constexpr int kStageBytes = kPlacesAt + kTiles * kWarp * 4;
constexpr int kSharedBytes = kStages * kStageBytes;
static_assert(kSharedBytes <= 52 * 1024);
constexpr int kWarpsAcross = 4;  // columns of warps, in 2 rows
constexpr int kRowTiles = 4;     // of 16 outputs, in a warp
constexpr int kColumnTiles = 4;  // of 8 tokens
static_assert(kTileInputs == kSparse24Inputs);

// Starts the copies of one step of kTiles tiles, values and places; zeros beyond the last tile.
__device__ __forceinline__ void copy_weights(const Sparse24Weights& weights, int steps, int first_tile, int step,
                                             unsigned char* to) {
  const int tiles = static_cast<int>(tiles_of(weights.outputs)) - first_tile;
  const auto at = [&](int tile) {
    return (static_cast<std::int64_t>(first_tile + tile) * steps + step) * kSparse24Lanes;
  };
  for (int i = threadIdx.x; i < kTiles * kWarp; i += kTileThreads) {
    const bool exists = i / kWarp < tiles;
    const std::int8_t* const from = weights.values + (exists ? (at(i / kWarp) + i % kWarp) * kSparse24LaneBytes : 0);
    copy_async(to + kValuesAt + i * kChunk, from, exists);
  }
  constexpr int kPlaceChunks = kWarp * 4 / kChunk;
  for (int i = threadIdx.x; i < kTiles * kPlaceChunks; i += kTileThreads) {
    const bool exists = i / kPlaceChunks < tiles;
    const std::uint32_t* const from = weights.places + (exists ? at(i / kPlaceChunks) + i % kPlaceChunks * 4 : 0);
    copy_async(to + kPlacesAt + i * kChunk, from, exists);
  }
}

__device__ __forceinline__ void multiply_stage(const unsigned char* stage, int first_tile, int column, int tiles,
                                               Sums (&sums)[kRowTiles][kColumnTiles]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  LongColumns columns[kColumnTiles];
#pragma unroll
  for (int i = 0; i < kColumnTiles; ++i) {
    const unsigned char* const at = stage + (column + i * 8 + lane / 4) * kTokenPitch + lane % 4 * kChunk;
    columns[i] = registers_of<LongColumns>(*reinterpret_cast<const int4*>(at));
  }
  const auto* const places = reinterpret_cast<const unsigned*>(stage + kPlacesAt);
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
    const int tile = first_tile + i;
    if (tile >= tiles) break;  // zeros are no valid places
    const Rows held = registers_of<Rows>(reinterpret_cast<const int4*>(stage + kValuesAt)[tile * kWarp + lane]);
    const unsigned of_lane = places[tile * kWarp + lane];
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) mma_sparse_s8(sums[i][j], held, columns[j], of_lane);
  }
}

__global__ void __launch_bounds__(kTileThreads, kGemmBlocks)
    sparse24_gemm(Sparse24Weights weights, DeviceTokens tokens, Output out, Partial partial) {
  MEMPOOL_SHARED_MEMORY(shared);
  const int inputs = static_cast<int>(weights.inputs);
  const int steps = static_cast<int>(tile_steps(inputs));
  const int stride = token_bytes(inputs);
  const int first_output = static_cast<int>(blockIdx.x) * kTileOutputs;
  const int first_token = static_cast<int>(blockIdx.y) * kTileTokens;
  const int first_tile = first_output / static_cast<int>(kSparse24Rows);
  const int tiles = static_cast<int>(tiles_of(weights.outputs)) - first_tile;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row = warp / kWarpsAcross * kRowTiles * 16;
  const int column = warp % kWarpsAcross * kColumnTiles * 8;
  Sums sums[kRowTiles][kColumnTiles] = {};
  const Share share = share_of(steps, blockIdx.z, gridDim.z);
  through_stages(
      share.last - share.first,
      [&](int stage, int place) {
        unsigned char* const to = shared + place * kStageBytes;
        copy_tokens<kTokenPitch>(tokens, stride, first_token, (share.first + stage) * kTileInputs, to);
        copy_weights(weights, steps, first_tile, share.first + stage, to);
      },
      [&](int place) {
        multiply_stage(shared + place * kStageBytes, row / static_cast<int>(kSparse24Rows), column, tiles, sums);
      });
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int output = first_output + row + lane / 4;
  if (gridDim.z > 1) {
    const std::int64_t pitch = panels_of(weights.outputs) * kPanel;
    const auto place = [&](int i, int j, int k) -> std::int32_t* {
      const int token = first_token + column + j * 8 + lane % 4 * 2 + k % 2;
      const int of_tile = output + i * 16 + k / 2 * 8;
      if (token >= tokens.count || of_tile >= weights.outputs) return nullptr;
      return partial.sums + token * pitch + of_tile;
    };
    if (!add_up(sums, partial, static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x), place, shared)) return;
  }
  OutputScale scales[2 * kRowTiles];
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) scales[i] = scale_of_output(weights, out, output + i * 8);
#pragma unroll
  for (int j = 0; j < 2 * kColumnTiles; ++j) {
    const int token = first_token + column + j / 2 * 8 + lane % 4 * 2 + j % 2;
    if (token >= tokens.count) break;
    const float token_scale = tokens.scales[token];
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      if (output + i * 8 >= weights.outputs) break;
      write_output(out, token * weights.outputs + output + i * 8, sums[i / 2][j / 2].of[i % 2 * 2 + j % 2], token_scale,
                   scales[i]);
    }
  }
}

}  // namespace

void sparse24_gemm_linear(const Sparse24Weights& weights, const DeviceTokens& tokens, const Output& out,
                          const Partial& partial, int splits, cudaStream_t stream) {
  const dim3 grid = {static_cast<unsigned>((weights.outputs + kTileOutputs - 1) / kTileOutputs),
                     static_cast<unsigned>((tokens.count + kTileTokens - 1) / kTileTokens),
                     static_cast<unsigned>(splits)};
  MEMPOOL_LAUNCH(sparse24_gemm, grid, kTileThreads, kSharedBytes, stream, weights, tokens, out, partial);
}

}  // namespace mempool::kernels::cuda
