// Dense int8 for few tokens, on the GPU.
#pragma once

#include "kernels/cuda/arguments.h"
#include "kernels/formats/dense.h"

namespace mempool::kernels::cuda {

// `splits` blocks divide the inputs of a panel; with more than one `partial` is used.
void dense_decode_linear(const DenseWeights& weights, const DeviceTokens& input, const Output& out,
                         const Partial& partial, int splits, cudaStream_t stream);

}  // namespace mempool::kernels::cuda
