// Dense int8 for many tokens, on the GPU.
#pragma once

#include "kernels/cuda/arguments.h"
#include "kernels/formats/dense.h"

namespace mempool::kernels::cuda {

// `held`: the panels that `weights.panels` has; their outputs are written. A block makes two of them, so their number
// is even, but for the last of a weight.
void dense_gemm_linear(const DenseWeights& weights, const PanelRange& held, const DeviceTokens& tokens,
                       const Output& out, const Partial& partial, int splits, cudaStream_t stream);

}  // namespace mempool::kernels::cuda
