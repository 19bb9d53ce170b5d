// Weights of which two of each four inputs are not zero at most ("2:4"), as registers of sparse tensor cores take them:
// for GPUs alone. The other formats do not serve there: a bitmap's values lie at places that depend on all bits before
// them. 0.625 bytes a weight.
//
// A tile is 16 outputs by 64 inputs, one instruction. Its inputs are 16 groups of four, of which two bytes each are
// held, and their places in 4 bits, the lower one first; places are always two different ones in order, also where
// there is nothing. What is beyond N or K is zero.
//
//     values  [N / 16 tiles][K / 64][32 lanes][16]  int8
//     places  [N / 16 tiles][K / 64][32 lanes]      uint32, of eight groups
//
// Which lane has what follows from the instruction's tables, but for the order of groups. They are exchanged like rows
// and columns of a square of 4 by 4, for then the inputs that a lane needs of a token are 16 bytes in a row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/weights.h"

namespace mempool::kernels {

inline constexpr std::int64_t kTileRows = 16;    // outputs
inline constexpr std::int64_t kStepInputs = 64;  // before two of each four are left out
inline constexpr std::int64_t kTileLanes = 32;
inline constexpr std::int64_t kLaneBytes = 16;
inline constexpr std::int64_t kTileBytes = kTileLanes * kLaneBytes;

struct Sparse24Weights {
  const std::int8_t* values = nullptr;    // sparse24_values(outputs, inputs)
  const std::uint32_t* places = nullptr;  // sparse24_places(outputs, inputs)
  const std::int32_t* sums = nullptr;     // these as in DenseWeights
  const float* scales = nullptr;
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
};

static constexpr std::int64_t tiles_of(std::int64_t outputs) { return (outputs + kTileRows - 1) / kTileRows; }
static constexpr std::int64_t tile_steps(std::int64_t inputs) { return (inputs + kStepInputs - 1) / kStepInputs; }
static constexpr std::int64_t sparse24_values(std::int64_t outputs, std::int64_t inputs) {
  return tiles_of(outputs) * tile_steps(inputs) * kTileBytes;
}
static constexpr std::int64_t sparse24_places(std::int64_t outputs, std::int64_t inputs) {
  return tiles_of(outputs) * tile_steps(inputs) * kTileLanes;
}

// Where a group of four inputs of an output is held, `group` of groups_of(inputs) or of what pads them.
struct Place24 {
  std::int64_t value;  // the first of its two bytes
  std::int64_t word;   // of places
  int shift;           // of its 4 bits there
};
static constexpr Place24 place24(std::int64_t output, std::int64_t group, std::int64_t inputs) {
  constexpr std::int64_t kGroups = kStepInputs / kGroup;
  const std::int64_t tile = output / kTileRows * tile_steps(inputs) + group / kGroups;
  const std::int64_t row = output % kTileRows;
  const std::int64_t at = group % 4 * 4 + group % kGroups / 4;  // in the order that is held
  const std::int64_t lane = row % 8 * 4 + at % 8 / 2;
  const std::int64_t byte = at / 8 * 8 + row / 8 * 4 + at % 2 * 2;
  return {tile * kTileBytes + lane * kLaneBytes + byte, tile * kTileLanes + row % 8 * 4 + at / 8 * 2 + row / 8,
          static_cast<int>(at % 8 * 4)};
}

}  // namespace mempool::kernels
