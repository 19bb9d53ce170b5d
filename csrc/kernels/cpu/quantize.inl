// Quantizes tokens to 8 bits, with one scale for each. Every instruction set does the same operations in the same
// order, so all give the same bits. The file of each set includes this one, and its flags say how loops are vectorized.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/weights.h"

namespace mempool::kernels {
namespace {

inline float from_bits(std::uint32_t bits) noexcept {
  float value = 0;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline std::uint32_t to_bits(float value) noexcept {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float as_float(float value) noexcept { return value; }
inline float as_float(std::uint16_t bfloat16) noexcept { return from_bits(std::uint32_t{bfloat16} << 16); }

// The scale of one token: 0 where all activations are zero or too small to be inverted, NaN where one is NaN or
// infinite.
template <typename Value>
inline float scale_of(const Value* row, std::int64_t inputs) noexcept {
  // The bits of magnitudes, compared as integers, have the order of the numbers, and NaN is the largest.
  std::int32_t largest = 0;
  for (std::int64_t i = 0; i < inputs; ++i) {
    const auto magnitude = static_cast<std::int32_t>(to_bits(as_float(row[i])) & 0x7FFFFFFFU);
    largest = magnitude > largest ? magnitude : largest;
  }
  constexpr std::int32_t kInfinity = 0x7F800000;
  if (largest >= kInfinity) return from_bits(0x7FC00000U);
  const float scale = from_bits(static_cast<std::uint32_t>(largest)) / 127.0F;
  return scale < 1e-37F ? 0.0F : scale;  // its inverse would be infinite
}

template <typename Value>
inline void quantize_row(const Value* row, std::int64_t inputs, float scale, std::uint8_t* out) noexcept {
  const bool is_number = scale > 0;  // not 0, not NaN
  const float inverse = is_number ? 1.0F / scale : 0.0F;
  // From 1.5 * 2^23 on the last bit of a float is worth 1: the sum is rounded with halves to even, and its low bits are
  // the integer.
  constexpr float kMagic = 12582912.0F;
  if (is_number) {
    for (std::int64_t i = 0; i < inputs; ++i) {
      const float shifted = as_float(row[i]) * inverse + kMagic;  // never fused, by the flags of these files
      out[i] = static_cast<std::uint8_t>(to_bits(shifted) + static_cast<std::uint32_t>(kZero));
    }
  } else {
    std::memset(out, kZero, static_cast<std::size_t>(inputs));
  }
  for (std::int64_t i = inputs; i < padded_inputs(inputs); ++i) out[i] = static_cast<std::uint8_t>(kZero);
}

template <typename Value>
void quantize(const Value* from, std::int64_t inputs, std::int64_t first, std::int64_t last, std::uint8_t* values,
              float* scales) noexcept {
  for (std::int64_t token = first; token < last; ++token) {
    const Value* const row = from + token * inputs;
    scales[token] = scale_of(row, inputs);
    quantize_row(row, inputs, scales[token], values + token * token_stride(inputs));
  }
}

}  // namespace
}  // namespace mempool::kernels
