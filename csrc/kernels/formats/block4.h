// The block4 format: sparse int8 weights in blocks of 4 inputs of one output, with a mask of one bit for each block.
// Blocks that are all zero are left out; the others are contiguous, output after output. The mask of an output begins
// with a word.
#pragma once

#include <array>
#include <cstdint>
#include <tuple>

#include "kernels/formats/format.h"
#include "kernels/weights.h"

namespace mempool::kernels {

static constexpr std::int64_t block_words(std::int64_t inputs) { return (groups_of(inputs) + 63) / 64; }

struct BlockWeights {
  const std::uint64_t* masks = nullptr;   // [outputs][block_words(inputs)]
  const std::int8_t* values = nullptr;    // [blocks][kGroup]
  const std::int32_t* offsets = nullptr;  // [outputs + 1]: the first block of an output, and where the last one's end
  const std::int32_t* sums = nullptr;     // these as in DenseWeights
  const float* scales = nullptr;
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
};

struct BlockFormat {
  using Weights = BlockWeights;
  static constexpr Format kFormat = Format::block4;
  static constexpr char kName[] = "block4";
  static constexpr std::tuple kBuffers{
      Buffer<Weights, std::uint64_t>{"masks", &Weights::masks},
      Buffer<Weights, std::int8_t>{"values", &Weights::values},
      Buffer<Weights, std::int32_t>{"offsets", &Weights::offsets, sizeof(std::int32_t)}};
  static constexpr bool kReadsAnything = false;

  static std::array<std::int64_t, 3> sizes(std::int64_t outputs, std::int64_t inputs) noexcept;
  static std::int64_t measure(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs) noexcept;
  static std::int64_t measured(const Weights& packed) noexcept;
  static bool pack(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::uint64_t* masks,
                   std::int8_t* values, std::int32_t* offsets, std::int32_t* sums) noexcept;
  static void unpack(const Weights& packed, std::int8_t* weights) noexcept;
  static bool is_sound(const Weights& packed, std::int64_t value_bytes) noexcept;
};

}  // namespace mempool::kernels
