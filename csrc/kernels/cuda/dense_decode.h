// The GEMV of a dense weight on the GPU, for few tokens.
#pragma once

#include "kernels/cuda/arguments.h"
#include "kernels/formats/dense.h"

namespace mempool::kernels::cuda {

// `splits` blocks divide the inputs of a panel (split-K); with more than one they add their sums in `partial`.
void dense_decode_linear(const DenseWeights& weights, const DeviceTokens& input, const Output& out,
                         const Partial& partial, int splits, cudaStream_t stream);

}  // namespace mempool::kernels::cuda
