// Split-K of the GEMMs: blocks divide the inputs of a tile where there are fewer tiles than a GPU has room for blocks.
#pragma once

#include "kernels/cuda/ptx.h"
#include "kernels/cuda/split.h"

namespace mempool::kernels::cuda {

// Adds the sums of this block, blockIdx.z of gridDim.z, to those of the others. True for the last block to arrive,
// which then has the sums of all. All threads call it. `place(i, j, k)`: where sums[i][j].of[k] belongs in
// partial.sums, or nullptr. `tile`: the index of the tile.
template <int rows, int columns, typename Place>
__device__ __forceinline__ bool add_up(Sums (&sums)[rows][columns], const Partial& partial, int tile, Place place,
                                       unsigned char* shared) {
#pragma unroll
  for (int i = 0; i < rows * columns * 4; ++i) {
    std::int32_t* const at = place(i / 4 / columns, i / 4 % columns, i % 4);
    if (at != nullptr) atomicAdd(at, sums[i / 4 / columns][i / 4 % columns].of[i % 4]);
  }
  if (!is_last(partial.arrived + tile, gridDim.z, reinterpret_cast<unsigned*>(shared))) return false;
#pragma unroll
  for (int i = 0; i < rows * columns * 4; ++i) {
    const std::int32_t* const at = place(i / 4 / columns, i / 4 % columns, i % 4);
    if (at != nullptr) sums[i / 4 / columns][i / 4 % columns].of[i % 4] = __ldcg(at);
  }
  return true;
}

}  // namespace mempool::kernels::cuda
