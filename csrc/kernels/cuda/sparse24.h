// Weights of which two of each four inputs are not zero at most, as the sparse tensor cores take them. The CPU's
// formats do not serve: a bitmap's values lie at places that depend on all bits before them, and the instruction wants
// them in rows, with the places of a row's inputs in a register of a certain lane. So they are packed once, when a
// layer comes to the GPU:
//
//     values  [N, rounded up to 16][K / 2, rounded up to 32]  int8, two of each four inputs
//     places  [N / 16][K / 64][32 lanes]  uint32, of each four inputs the two places, 2 bits each, the lower first
//
// Both are zero-padded, but places are always two different ones in order. 0.625 bytes a weight.
#pragma once

#include <cstdint>

#include "kernels/cuda/arguments.h"

namespace mempool::kernels::cuda {

struct Sparse24Weights {
  const std::int8_t* values = nullptr;
  const std::uint32_t* places = nullptr;
  const float* scales = nullptr;  // of each output
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
};

inline constexpr int kRowsOfPlaces = 16;
inline constexpr int kInputsOfPlaces = 64;
inline constexpr std::int64_t sparse24_rows(std::int64_t outputs) { return (outputs + 15) / 16 * 16; }
inline constexpr std::int64_t sparse24_steps(std::int64_t inputs) { return (inputs + 63) / 64; }
inline constexpr std::int64_t sparse24_value_bytes(std::int64_t outputs, std::int64_t inputs) {
  return sparse24_rows(outputs) * sparse24_steps(inputs) * (kInputsOfPlaces / 2);
}
inline constexpr std::int64_t sparse24_place_words(std::int64_t outputs, std::int64_t inputs) {
  return sparse24_rows(outputs) / kRowsOfPlaces * sparse24_steps(inputs) * kWarp;
}
// The word of an output's inputs 32 * (input / 32) on, and there the bits input / 4 % 8 * 4 on.
inline constexpr std::int64_t place_word(std::int64_t output, std::int64_t input, std::int64_t inputs) {
  const std::int64_t lane = output % 8 * 4 + input % 64 / 32 * 2 + output % 16 / 8;
  return (output / kRowsOfPlaces * sparse24_steps(inputs) + input / kInputsOfPlaces) * kWarp + lane;
}

// `weights`: [N][K]. False where four inputs have more than two that are not zero.
bool pack_sparse24(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::int8_t* values,
                   std::uint32_t* places) noexcept;

void sparse24_gemm_linear(const Sparse24Weights& weights, const DeviceTokens& tokens, const Output& out,
                          cudaStream_t stream);

}  // namespace mempool::kernels::cuda
