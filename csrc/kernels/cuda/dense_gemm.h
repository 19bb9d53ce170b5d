// Dense int8 for many tokens, on the GPU.
#pragma once

#include "kernels/cuda/arguments.h"

namespace mempool::kernels::cuda {

void dense_gemm_linear(const DenseWeights& weights, const DeviceTokens& tokens, const Output& out, cudaStream_t stream);

}  // namespace mempool::kernels::cuda
