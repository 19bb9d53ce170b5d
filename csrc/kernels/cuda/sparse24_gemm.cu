// 2:4 sparse int8 on sparse tensor cores. The sparse side of the instruction is its rows, so those are outputs here,
// and tokens are columns: a block makes 128 outputs by 128 tokens, a warp 64 by 32 of them. Occupancy: 2 blocks of 256
// threads on a multiprocessor, 128 registers and 68 KiB of shared memory.
#include "kernels/cuda/sparse24.h"
#include "kernels/cuda/token_tile.h"

namespace mempool::kernels::cuda {
namespace {

constexpr int kRowBytes = kTileInputs / 2;     // of a stage, as they are held
constexpr int kRowPitch = kRowBytes + kChunk;  // eight rows of 16 bytes lie in different banks
constexpr int kValueBytes = kTileOutputs * kRowPitch;
constexpr int kPlaceTiles = kTileOutputs / kRowsOfPlaces;
constexpr int kPlaceBytes = kPlaceTiles * kWarp * 4;
constexpr int kStageBytes = kTokenTileBytes + kValueBytes + kPlaceBytes;
constexpr int kSharedBytes = kStages * kStageBytes;
static_assert(kSharedBytes <= 68 * 1024);
constexpr int kWarpsAcross = 4;  // by 2 below each other
constexpr int kRowTiles = 4;     // of 16 outputs, in a warp
constexpr int kColumnTiles = 4;  // of 8 tokens
static_assert(kTileInputs == kInputsOfPlaces);

// Asks for one step of the outputs from `first` on, values and places; zeros beyond the last.
__device__ __forceinline__ void copy_weights(const Sparse24Weights& weights, int steps, int first, int step,
                                             unsigned char* to) {
  const int rows = static_cast<int>(sparse24_rows(weights.outputs));
  constexpr int kChunks = kRowBytes / kChunk;
#pragma unroll
  for (int i = threadIdx.x; i < kTileOutputs * kChunks; i += kTileThreads) {
    const int row = i / kChunks;
    const bool exists = first + row < rows;
    const std::int64_t at = (static_cast<std::int64_t>(first + row) * steps + step) * kRowBytes + i % kChunks * kChunk;
    copy_async(to + row * kRowPitch + i % kChunks * kChunk, exists ? weights.values + at : weights.values, exists);
  }
  constexpr int kPlaceChunks = kWarp * 4 / kChunk;
  for (int i = threadIdx.x; i < kPlaceTiles * kPlaceChunks; i += kTileThreads) {
    const int tile = first / kRowsOfPlaces + i / kPlaceChunks;
    const bool exists = tile < rows / kRowsOfPlaces;
    const std::int64_t at = (static_cast<std::int64_t>(tile) * steps + step) * kWarp + i % kPlaceChunks * 4;
    copy_async(to + kValueBytes + i * kChunk, exists ? weights.places + at : weights.places, exists);
  }
}

__device__ __forceinline__ void multiply_stage(const unsigned char* stage, int row, int column, int rows,
                                               Sums (&sums)[kRowTiles][kColumnTiles]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  LongColumns columns[kColumnTiles];
#pragma unroll
  for (int i = 0; i < kColumnTiles; ++i) {
    const Rows loaded = load_matrices(stage + (column + i * 8 + lane % 8) * kTokenPitch + lane / 8 * kChunk);
    columns[i] = {{loaded.of[0], loaded.of[1], loaded.of[2], loaded.of[3]}};
  }
  const unsigned char* const values = stage + kTokenTileBytes;
  const auto* const places = reinterpret_cast<const unsigned*>(values + kValueBytes);
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
    if (row + i * 16 >= rows) break;  // there are no places of rows that do not exist
    const Rows held = load_matrices(values + (row + i * 16 + lane % 16) * kRowPitch + lane / 16 * kChunk);
    const unsigned of_lane = places[(row / 16 + i) * kWarp + lane];
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) mma_sparse_s8(sums[i][j], held, columns[j], of_lane);
  }
}

__global__ void __launch_bounds__(kTileThreads, 2)
    sparse24_gemm(Sparse24Weights weights, DeviceTokens tokens, Output out) {
  MEMPOOL_SHARED_MEMORY(shared);
  const int inputs = static_cast<int>(weights.inputs);
  const int steps = static_cast<int>(sparse24_steps(inputs));
  const int stride = token_bytes(inputs);
  const int first_output = static_cast<int>(blockIdx.x) * kTileOutputs;
  const int first_token = static_cast<int>(blockIdx.y) * kTileTokens;
  const int rows = static_cast<int>(sparse24_rows(weights.outputs)) - first_output;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row = warp / kWarpsAcross * kRowTiles * 16;
  const int column = warp % kWarpsAcross * kColumnTiles * 8;
  Sums sums[kRowTiles][kColumnTiles] = {};
  through_stages(
      steps,
      [&](int step, int place) {
        unsigned char* const to = shared + place * kStageBytes;
        copy_tokens(tokens, stride, first_token, step * kTileInputs, to);
        copy_weights(weights, steps, first_output, step, to + kTokenTileBytes);
      },
      [&](int place) { multiply_stage(shared + place * kStageBytes, row, column, rows, sums); });
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int output = first_output + row + lane / 4;
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
                          cudaStream_t stream) {
  const dim3 grid = {static_cast<unsigned>((weights.outputs + kTileOutputs - 1) / kTileOutputs),
                     static_cast<unsigned>((tokens.count + kTileTokens - 1) / kTileTokens), 1};
  MEMPOOL_LAUNCH(sparse24_gemm, grid, kTileThreads, kSharedBytes, stream, weights, tokens, out);
}

}  // namespace mempool::kernels::cuda
