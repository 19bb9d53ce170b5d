// The GEMM of a dense weight on the GPU, for many tokens.
#pragma once

#include "kernels/cuda/arguments.h"
#include "kernels/formats/dense.h"

namespace mempool::kernels::cuda {

// `held`: the panels that `weights.panels` holds, whose outputs are written. A block computes two panels, so their
// number is even, but for the last panels of a weight. `splits` blocks divide the inputs of a tile (split-K); with more
// than one they add their sums in `partial`.
void dense_gemm_linear(const DenseWeights& weights, const PanelRange& held, const DeviceTokens& tokens,
                       const Output& out, const Partial& partial, int splits, cudaStream_t stream);

}  // namespace mempool::kernels::cuda
