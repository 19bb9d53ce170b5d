// The 2:4 format: int8 weights of which at most two of each four inputs are not zero, laid out as the registers of
// sparse tensor cores take them, for GPUs alone. The other sparse formats do not serve there: the place of a bitmap's
// value depends on all bits before it. A weight takes 0.625 bytes where tiles are full.
//
// A tile is 16 outputs by 64 inputs, the operand of one instruction. Its inputs are 16 groups of four; of each group
// two bytes are kept, and their places in 4 bits, the lower place first. The two places are always different and in
// order, also where no weight is kept. The padding beyond N or K is zero.
//
//     values  [N / 16 tiles][K / 64][32 lanes][16]  int8
//     places  [N / 16 tiles][K / 64][32 lanes]      uint32, of eight groups
//
// The instruction's tables say what each lane holds, but for the order of groups. Groups are transposed like a square
// of 4 by 4, for then the inputs that a lane needs of a token are 16 contiguous bytes.
#pragma once

#include <array>
#include <cstdint>
#include <tuple>

#include "kernels/formats/format.h"
#include "kernels/weights.h"

namespace mempool::kernels {

inline constexpr std::int64_t kSparse24Rows = 16;    // outputs
inline constexpr std::int64_t kSparse24Inputs = 64;  // of which 32 are kept
inline constexpr std::int64_t kSparse24Lanes = 32;
inline constexpr std::int64_t kSparse24LaneBytes = 16;
inline constexpr std::int64_t kSparse24Bytes = kSparse24Lanes * kSparse24LaneBytes;

struct Sparse24Weights {
  const std::int8_t* values = nullptr;    // sparse24_values(outputs, inputs)
  const std::uint32_t* places = nullptr;  // sparse24_places(outputs, inputs)
  const std::int32_t* sums = nullptr;     // these as in DenseWeights
  const float* scales = nullptr;
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
};

static constexpr std::int64_t tiles_of(std::int64_t outputs) { return (outputs + kSparse24Rows - 1) / kSparse24Rows; }
static constexpr std::int64_t tile_steps(std::int64_t inputs) {
  return (inputs + kSparse24Inputs - 1) / kSparse24Inputs;
}
static constexpr std::int64_t sparse24_values(std::int64_t outputs, std::int64_t inputs) {
  return tiles_of(outputs) * tile_steps(inputs) * kSparse24Bytes;
}
static constexpr std::int64_t sparse24_places(std::int64_t outputs, std::int64_t inputs) {
  return tiles_of(outputs) * tile_steps(inputs) * kSparse24Lanes;
}

// Where a group of four inputs of an output is kept; `group` may be one of the padding.
struct Place24 {
  std::int64_t value;  // the first of its two bytes
  std::int64_t word;   // of places
  int shift;           // of its 4 bits there
};
static constexpr Place24 place24(std::int64_t output, std::int64_t group, std::int64_t inputs) {
  constexpr std::int64_t kGroups = kSparse24Inputs / kGroup;
  const std::int64_t tile = output / kSparse24Rows * tile_steps(inputs) + group / kGroups;
  const std::int64_t row = output % kSparse24Rows;
  const std::int64_t at = group % 4 * 4 + group % kGroups / 4;  // in the transposed order
  const std::int64_t lane = row % 8 * 4 + at % 8 / 2;
  const std::int64_t byte = at / 8 * 8 + row / 8 * 4 + at % 2 * 2;
  return {tile * kSparse24Bytes + lane * kSparse24LaneBytes + byte,
          tile * kSparse24Lanes + row % 8 * 4 + at / 8 * 2 + row / 8, static_cast<int>(at % 8 * 4)};
}

struct Sparse24Format {
  using Weights = Sparse24Weights;
  static constexpr Format kFormat = Format::sparse24;
  static constexpr char kName[] = "sparse24";
  static constexpr std::tuple kBuffers{Buffer<Weights, std::int8_t>{"values", &Weights::values},
                                       Buffer<Weights, std::uint32_t>{"places", &Weights::places}};
  static constexpr bool kReadsAnything = false;
  static constexpr char kMisfit[] =
      "four inputs of an output have more than two weights that are not zero: prune it with pattern=\"2:4\".";
  static constexpr char kNotOnCpu[] =
      "2:4 weights run on a GPU alone: move the layer and its input with .to(\"cuda\"), or make it one that the CPU "
      "runs with layer.repacked() or mempool.compress.convert(model).";

  static std::array<std::int64_t, 2> sizes(std::int64_t outputs, std::int64_t inputs) noexcept;
  static bool pack(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::int8_t* values,
                   std::uint32_t* places, std::int32_t* sums) noexcept;
  static void unpack(const Weights& packed, std::int8_t* weights) noexcept;
  static bool is_sound(const Weights& packed) noexcept;
};

}  // namespace mempool::kernels
