// The dense format: int8 weights in panels. Outputs (N) come in panels of 64, inputs (K) in groups of 4; the padding
// beyond N or K is zero. A panel holds
//
//     [K / 4 groups][64 outputs][4 inputs]  int8
//
// so that 64 bytes are 16 outputs of one group: one operand of a dot-product instruction of AVX-512 VNNI.
#pragma once

#include <array>
#include <cstdint>
#include <tuple>

#include "kernels/formats/format.h"
#include "kernels/weights.h"

namespace mempool::kernels {

static constexpr std::int64_t dense_bytes(std::int64_t outputs, std::int64_t inputs) {
  return panels_of(outputs) * kPanel * padded_inputs(inputs);
}

struct DenseWeights {
  const std::int8_t* panels = nullptr;  // dense_bytes(outputs, inputs)
  const std::int32_t* sums = nullptr;   // of the weights of each output
  const float* scales = nullptr;        // of each output: a weight is its int8 times this
  std::int64_t outputs = 0;             // N
  std::int64_t inputs = 0;              // K, 1 to kMostInputs
};

struct DenseFormat {
  using Weights = DenseWeights;
  static constexpr Format kFormat = Format::dense;
  static constexpr char kName[] = "int8";
  static constexpr std::tuple kBuffers{Buffer<Weights, std::int8_t>{"panels", &Weights::panels}};
  static constexpr bool kReadsAnything = true;

  static std::array<std::int64_t, 1> sizes(std::int64_t outputs, std::int64_t inputs) noexcept;
  static bool pack(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::int8_t* panels,
                   std::int32_t* sums) noexcept;
  static void unpack(const Weights& packed, std::int8_t* weights) noexcept;
  static bool is_sound(const Weights& packed) noexcept;
};

}  // namespace mempool::kernels
