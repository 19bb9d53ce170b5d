// Activations to int8, on the GPU.
#pragma once

#include "kernels/cuda/arguments.h"

namespace mempool::kernels::cuda {

// `count` > 0 tokens of `from`, [count][inputs], to [count][token_bytes(inputs)] and a scale each.
void quantize_float32(const float* from, int count, int inputs, std::int8_t* values, float* scales,
                      cudaStream_t stream);
void quantize_bfloat16(const unsigned short* from, int count, int inputs, std::int8_t* values, float* scales,
                       cudaStream_t stream);

}  // namespace mempool::kernels::cuda
