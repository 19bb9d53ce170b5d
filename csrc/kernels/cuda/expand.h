// Panels of sparse weights made dense, for the GEMM of many tokens.
#pragma once

#include "kernels/cuda/arguments.h"
#include "kernels/formats/bitmap.h"
#include "kernels/formats/block4.h"
#include "kernels/formats/dense.h"

namespace mempool::kernels::cuda {

// `to`: those panels, as DenseWeights has them.
void expand_bitmap(const BitmapWeights& weights, const PanelRange& panels, std::int8_t* to, cudaStream_t stream);
void expand_block4(const BlockWeights& weights, const PanelRange& panels, std::int8_t* to, cudaStream_t stream);

}  // namespace mempool::kernels::cuda
