// The epilogue of the CUDA kernels: exact sums become outputs by scales, bias and type, with the CPU's bits.
#pragma once

#include "kernels/cuda/arguments.h"
#include "kernels/cuda/device.h"

namespace mempool::kernels::cuda {

__device__ __forceinline__ unsigned short to_bfloat16(float value) {
  const unsigned bits = __float_as_uint(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return 0x7FC0;  // NaN
  return static_cast<unsigned short>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

// The scale and the bias of one output.
struct OutputScale {
  float scale = 0;
  float bias = 0;
};

template <typename PackedWeights>
__device__ __forceinline__ OutputScale scale_of_output(const PackedWeights& weights, const Output& out, int output) {
  if (output >= weights.outputs) return {};
  return {weights.scales[output], out.bias != nullptr ? out.bias[output] : 0.0F};
}

// Writes one output from its exact sum, by the CPU's operations in their order (kernels/cpu/finish.inl).
__device__ __forceinline__ void write_output(const Output& out, std::int64_t at, int sum, float token_scale,
                                             const OutputScale& of_output) {
  if (out.type == OutputType::accumulators) {
    static_cast<std::int32_t*>(out.values)[at] = sum;
    return;
  }
  float value = __fmul_rn(__int2float_rn(sum), __fmul_rn(token_scale, of_output.scale));
  if (out.bias != nullptr) value = __fadd_rn(value, of_output.bias);
  if (value != value) value = __uint_as_float(0x7FC00000U);  // the NaN that the CPU writes
  if (out.type == OutputType::float32) {
    static_cast<float*>(out.values)[at] = value;
  } else {
    static_cast<unsigned short*>(out.values)[at] = to_bfloat16(value);
  }
}

template <typename PackedWeights>
__device__ __forceinline__ void finish(const PackedWeights& weights, const DeviceTokens& tokens, const Output& out,
                                       int token, int output, int sum) {
  if (token >= tokens.count || output >= weights.outputs) return;
  write_output(out, token * weights.outputs + output, sum, tokens.scales[token], scale_of_output(weights, out, output));
}

}  // namespace mempool::kernels::cuda
