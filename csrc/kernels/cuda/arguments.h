// What kernels on the GPU take. Packed weights are those of the CPU, byte for byte (kernels/weights.h), but for 2:4:
// see sparse24_gemm.cu. Tokens are kept as signed bytes, so the sums of weights are not needed.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/weights.h"

namespace mempool::kernels::cuda {

// Bytes from a token to the next: whole loads of 16, zero beyond the inputs.
inline constexpr int token_stride(int inputs) { return (inputs + 15) / 16 * 16; }

struct DeviceTokens {
  const std::int8_t* values = nullptr;  // [count][token_stride]
  const float* scales = nullptr;        // of each token; NaN where an activation was NaN or infinite
  int count = 0;
};

// Where the inputs of a panel are divided among blocks: sums, all zero before a kernel and after it.
struct Partial {
  std::int32_t* sums = nullptr;  // [tokens][panels * kPanel]
  unsigned* arrived = nullptr;   // [panels][blocks of tokens]
};

__device__ __forceinline__ unsigned short to_bfloat16(float value) {
  const unsigned bits = __float_as_uint(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return 0x7FC0;  // NaN
  return static_cast<unsigned short>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

// From the exact sum to the output: the CPU's operations, in its order (kernels/cpu/finish.inl).
template <typename PackedWeights>
__device__ __forceinline__ void finish(const PackedWeights& weights, const DeviceTokens& tokens, const Output& out,
                                       int token, int output, int sum) {
  if (token >= tokens.count || output >= weights.outputs) return;
  const std::int64_t at = token * weights.outputs + output;
  if (out.type == OutputType::accumulators) {
    static_cast<std::int32_t*>(out.values)[at] = sum;
    return;
  }
  const float scale = __fmul_rn(tokens.scales[token], weights.scales[output]);
  float value = __fmul_rn(__int2float_rn(sum), scale);
  if (out.bias != nullptr) value = __fadd_rn(value, out.bias[output]);
  if (out.type == OutputType::float32) {
    static_cast<float*>(out.values)[at] = value;
  } else {
    static_cast<unsigned short*>(out.values)[at] = to_bfloat16(value);
  }
}

}  // namespace mempool::kernels::cuda
