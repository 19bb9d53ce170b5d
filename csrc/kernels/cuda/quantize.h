// Quantizes activations to int8 on the GPU.
#pragma once

#include "kernels/cuda/arguments.h"

namespace mempool::kernels::cuda {

// Quantizes `count` > 0 tokens of `from`, [count][inputs], to `values`, [count][token_bytes(inputs)], and writes a
// scale for each to `scales`.
void quantize_float32(const float* from, int count, int inputs, std::int8_t* values, float* scales,
                      cudaStream_t stream);
void quantize_bfloat16(const unsigned short* from, int count, int inputs, std::int8_t* values, float* scales,
                       cudaStream_t stream);

}  // namespace mempool::kernels::cuda
