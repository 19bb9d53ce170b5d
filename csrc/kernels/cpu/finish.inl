// The epilogue of every kernel: exact int32 sums become outputs by the scales of token and output, the bias and the
// output's type. Each operation rounds once, and all kernels have them in the same order.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/weights.h"

namespace mempool::kernels {
namespace {

inline std::uint16_t to_bfloat16(float value) noexcept {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return 0x7FC0;                          // NaN
  return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);  // to nearest, halves to even
}

// Writes `count` outputs of one token, from `output` on. `weights` may be of any format; `sums` are those of q + zero.
template <int zero = kZero, typename PackedWeights>
inline void finish_row(const PackedWeights& weights, const Tokens& tokens, const Output& out, std::int64_t token,
                       std::int64_t output, std::int64_t count, const std::int32_t* sums) noexcept {
  const std::int64_t at = token * weights.outputs + output;
  const std::int32_t* const zero_points = weights.sums + output;
  if (out.type == OutputType::accumulators) {
    auto* const to = static_cast<std::int32_t*>(out.values) + at;
    for (std::int64_t i = 0; i < count; ++i) to[i] = sums[i] - zero * zero_points[i];
    return;
  }
  const float* const scales = weights.scales + output;
  const float* const bias = out.bias != nullptr ? out.bias + output : nullptr;
  const float token_scale = tokens.scales[token];
  const auto value = [&](std::int64_t i) {
    const float product = static_cast<float>(sums[i] - zero * zero_points[i]) * (token_scale * scales[i]);
    return bias != nullptr ? product + bias[i] : product;
  };
  if (out.type == OutputType::float32) {
    auto* const to = static_cast<float*>(out.values) + at;
    for (std::int64_t i = 0; i < count; ++i) to[i] = value(i);
  } else {
    auto* const to = static_cast<std::uint16_t*>(out.values) + at;
    for (std::int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(value(i));
  }
}

}  // namespace
}  // namespace mempool::kernels
