// Expands panels of sparse weights to dense on the GPU, for the GEMM of many tokens.
#pragma once

#include "kernels/cuda/arguments.h"
#include "kernels/formats/bitmap.h"
#include "kernels/formats/block4.h"
#include "kernels/formats/dense.h"

namespace mempool::kernels::cuda {

// Writes `panels` to `to`, laid out as in DenseWeights.
void expand_bitmap(const BitmapWeights& weights, const PanelRange& panels, std::int8_t* to, cudaStream_t stream);
void expand_block4(const BlockWeights& weights, const PanelRange& panels, std::int8_t* to, cudaStream_t stream);

}  // namespace mempool::kernels::cuda
