// 2:4 sparse int8 for many tokens.
#pragma once

#include "kernels/cuda/arguments.h"
#include "kernels/sparse24.h"

namespace mempool::kernels::cuda {

void sparse24_gemm_linear(const Sparse24Weights& weights, const DeviceTokens& tokens, const Output& out,
                          cudaStream_t stream);

}  // namespace mempool::kernels::cuda
