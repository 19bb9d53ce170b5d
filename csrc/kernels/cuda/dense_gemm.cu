// The GEMM of a dense weight, for many tokens, on tensor cores: a block computes a tile of 128 tokens by 128 outputs, a
// warp 64 by 32 of it. The CPU's panels serve as they are: mma takes words of four inputs as its columns, and so are
// they stored. Occupancy: 2 blocks of 256 threads on a multiprocessor, 128 registers and 74 KiB of shared memory.
#include "kernels/cuda/dense_gemm.h"
#include "kernels/cuda/tile_split.h"
#include "kernels/cuda/token_tile.h"

namespace mempool::kernels::cuda {
namespace {

constexpr int kGroups = kTileInputs / static_cast<int>(kGroup);
constexpr int kPanels = kTileOutputs / static_cast<int>(kPanel);
constexpr int kTokenPitch = kTileInputs + kChunk;  // eight rows of 16 bytes, as they are loaded, lie in different banks
constexpr int kTokenTileBytes = kTileTokens * kTokenPitch;
// Words from a group to the next in shared memory: the 4 groups by 8 outputs that a warp reads at once lie in different
// banks.
constexpr int kGroupPitch = kTileOutputs + 8;
constexpr int kStageBytes = kTokenTileBytes + kGroups * kGroupPitch * 4;
constexpr int kSharedBytes = kStages * kStageBytes;
static_assert(kSharedBytes <= 74 * 1024);
constexpr int kWarpsAcross = 4;  // columns of warps, in 2 rows
constexpr int kRowTiles = 4;     // of 16 tokens, in a warp
constexpr int kColumnTiles = 4;  // of 8 outputs

// Starts the copies of kGroups groups from `first` on, of two panels; zeros beyond the last group and panel.
__device__ __forceinline__ void copy_panels(const DenseWeights& weights, int panels, int groups, int first_panel,
                                            int first, unsigned char* to) {
  constexpr int kChunks = static_cast<int>(kPanel * kGroup) / kChunk;  // of a group of a panel
#pragma unroll
  for (int i = threadIdx.x; i < kGroups * kPanels * kChunks; i += kTileThreads) {
    const int chunk = i % kChunks;
    const int group = i / kChunks % kGroups;
    const int panel = i / kChunks / kGroups;
    const bool exists = first_panel + panel < panels && first + group < groups;
    const std::int64_t at = (static_cast<std::int64_t>(first_panel + panel) * groups + first + group) * kPanel * kGroup;
    copy_async(to + group * kGroupPitch * 4 + panel * kPanel * kGroup + chunk * kChunk,
               exists ? weights.panels + at + chunk * kChunk : weights.panels, exists);
  }
}

__device__ __forceinline__ void multiply_stage(const unsigned char* stage, int row, int column,
                                               Sums (&sums)[kRowTiles][kColumnTiles]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const auto* const words = reinterpret_cast<const unsigned*>(stage + kTokenTileBytes);
#pragma unroll
  for (int half = 0; half < kTileInputs / 32; ++half) {
    Columns columns[kColumnTiles];
#pragma unroll
    for (int i = 0; i < kColumnTiles; ++i) {
      const unsigned* const at = words + (half * 8 + lane % 4) * kGroupPitch + column + i * 8 + lane / 4;
      columns[i] = {{at[0], at[4 * kGroupPitch]}};
    }
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      const Rows rows =
          load_matrices(stage + (row + i * 16 + lane % 16) * kTokenPitch + half * 32 + lane / 16 * kChunk);
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) mma_s8(sums[i][j], rows, columns[j]);
    }
  }
}

__global__ void __launch_bounds__(kTileThreads, kGemmBlocks)
    dense_gemm(DenseWeights weights, PanelRange held, DeviceTokens tokens, Output out, Partial partial) {
  MEMPOOL_SHARED_MEMORY(shared);
  const int inputs = static_cast<int>(weights.inputs);
  const int groups = static_cast<int>(groups_of(inputs));
  const int stride = token_bytes(inputs);
  const int first_token = static_cast<int>(blockIdx.y) * kTileTokens;
  const int first_panel = static_cast<int>(blockIdx.x) * kPanels;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row = warp / kWarpsAcross * kRowTiles * 16;
  const int column = warp % kWarpsAcross * kColumnTiles * 8;
  Sums sums[kRowTiles][kColumnTiles] = {};
  const Share share = share_of((groups + kGroups - 1) / kGroups, blockIdx.z, gridDim.z);
  through_stages(
      share.last - share.first,
      [&](int stage, int place) {
        unsigned char* const to = shared + place * kStageBytes;
        copy_tokens<kTokenPitch>(tokens, stride, first_token, (share.first + stage) * kTileInputs, to);
        copy_panels(weights, held.count, groups, first_panel, (share.first + stage) * kGroups, to + kTokenTileBytes);
      },
      [&](int place) { multiply_stage(shared + place * kStageBytes, row, column, sums); });
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int output = (held.first + first_panel) * static_cast<int>(kPanel) + column + lane % 4 * 2;
  if (gridDim.z > 1) {
    const std::int64_t pitch = held.count * kPanel;
    const auto place = [&](int i, int j, int k) -> std::int32_t* {
      const int token = first_token + row + i * 16 + lane / 4 + k / 2 * 8;
      const int of_tile = output + j * 8 + k % 2;
      if (token >= tokens.count || of_tile >= weights.outputs) return nullptr;
      return partial.sums + token * pitch + of_tile - held.first * kPanel;
    };
    const int tile = static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x);
    if (!add_up(sums, partial, tile, place, shared)) return;
  }
  OutputScale scales[kColumnTiles][2];
#pragma unroll
  for (int i = 0; i < 2 * kColumnTiles; ++i)
    scales[i / 2][i % 2] = scale_of_output(weights, out, output + i / 2 * 8 + i % 2);
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {  // eight rows each
    const int token = first_token + row + i * 8 + lane / 4;
    if (token >= tokens.count) break;
    const float token_scale = tokens.scales[token];
#pragma unroll
    for (int j = 0; j < 2 * kColumnTiles; ++j) {
      const int of_tile = output + j / 2 * 8 + j % 2;
      if (of_tile >= weights.outputs) break;
      write_output(out, token * weights.outputs + of_tile, sums[i / 2][j / 2].of[i % 2 * 2 + j % 2], token_scale,
                   scales[j / 2][j % 2]);
    }
  }
}

}  // namespace

void dense_gemm_linear(const DenseWeights& weights, const PanelRange& held, const DeviceTokens& tokens,
                       const Output& out, const Partial& partial, int splits, cudaStream_t stream) {
  const dim3 grid = {static_cast<unsigned>((held.count + kPanels - 1) / kPanels),
                     static_cast<unsigned>((tokens.count + kTileTokens - 1) / kTileTokens),
                     static_cast<unsigned>(splits)};
  MEMPOOL_LAUNCH(dense_gemm, grid, kTileThreads, kSharedBytes, stream, weights, held, tokens, out, partial);
}

}  // namespace mempool::kernels::cuda
