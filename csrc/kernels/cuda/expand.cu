// Expands panels of sparse weights to dense for dense_gemm: once for all tokens, while decode kernels expand them for
// each 16. Blocks of threads divide a panel's inputs. Occupancy: 4 blocks of 256 threads on a multiprocessor, 64
// registers and 17 KiB of shared memory.
#include <algorithm>

#include "kernels/cuda/bitmap_chunk.h"
#include "kernels/cuda/block4_chunk.h"
#include "kernels/cuda/expand.h"

namespace mempool::kernels::cuda {
namespace {

constexpr int kSharedBytes = kExpanderBytes;
static_assert(kSharedBytes <= 17 * 1024);

// Where the panel of this block begins in `to`.
template <typename PackedWeights>
__device__ __forceinline__ std::int8_t* panel_of(const PackedWeights& weights, std::int8_t* to) {
  return to + blockIdx.x * groups_of(weights.inputs) * kPanel * kGroup;
}

__global__ void __launch_bounds__(kDecodeThreads, 4)
    bitmap_expand(BitmapWeights weights, int first_panel, std::int8_t* to) {
  MEMPOOL_SHARED_MEMORY(shared);
  const int groups = static_cast<int>(groups_of(weights.inputs));
  const Share share = share_of((groups + kGroupsOfChunk - 1) / kGroupsOfChunk, blockIdx.y, gridDim.y);
  BitmapExpander expander(weights, first_panel + static_cast<int>(blockIdx.x), share.first, shared);
  std::int8_t* const panel = panel_of(weights, to);
  for (int chunk = share.first; chunk < share.last; ++chunk) {
    expander.expand(chunk, reinterpret_cast<int4*>(panel + chunk * kChunkBytes) + threadIdx.x * 4);
  }
}

__global__ void __launch_bounds__(kDecodeThreads, 4)
    block4_expand(BlockWeights weights, int first_panel, std::int8_t* to) {
  const int groups = static_cast<int>(groups_of(weights.inputs));
  const Share share = share_of(static_cast<int>(block_words(weights.inputs)), blockIdx.y, gridDim.y);
  BlockExpander expander(weights, first_panel + static_cast<int>(blockIdx.x), share.first);
  std::int8_t* const panel = panel_of(weights, to);
  for (int word = share.first; word < share.last; ++word) {
    expander.expand(word, reinterpret_cast<int*>(panel + word * kChunkBytes), groups - word * kGroupsOfChunk);
  }
}

// Enough blocks for a large GPU, also where panels are few; but not many for a panel, as each block counts the masks
// before its share.
template <typename PackedWeights>
dim3 grid_of(const PackedWeights& weights, const PanelRange& panels) {
  constexpr std::int64_t kBlocks = 512;
  constexpr std::int64_t kMostSplits = 8;
  const std::int64_t chunks = (groups_of(weights.inputs) + kGroupsOfChunk - 1) / kGroupsOfChunk;
  const std::int64_t splits = std::min({(kBlocks + panels.count - 1) / panels.count, kMostSplits, chunks});
  return {static_cast<unsigned>(panels.count), static_cast<unsigned>(splits), 1};
}

}  // namespace

void expand_bitmap(const BitmapWeights& weights, const PanelRange& panels, std::int8_t* to, cudaStream_t stream) {
  MEMPOOL_LAUNCH(bitmap_expand, grid_of(weights, panels), kDecodeThreads, kSharedBytes, stream, weights, panels.first,
                 to);
}

void expand_block4(const BlockWeights& weights, const PanelRange& panels, std::int8_t* to, cudaStream_t stream) {
  MEMPOOL_LAUNCH(block4_expand, grid_of(weights, panels), kDecodeThreads, 0, stream, weights, panels.first, to);
}

}  // namespace mempool::kernels::cuda
