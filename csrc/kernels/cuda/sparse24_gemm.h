// The GEMM of a 2:4 weight on the GPU, for many tokens.
#pragma once

#include "kernels/cuda/arguments.h"
#include "kernels/formats/sparse24.h"

namespace mempool::kernels::cuda {

// `splits` blocks divide the inputs of a tile (split-K); with more than one they add their sums in `partial`.
void sparse24_gemm_linear(const Sparse24Weights& weights, const DeviceTokens& tokens, const Output& out,
                          const Partial& partial, int splits, cudaStream_t stream);

}  // namespace mempool::kernels::cuda
