// A problem's weights in the sparse formats.
#pragma once

#include <vector>

#include "kernels/problem.h"

namespace mempool::kernels {

struct PackedBitmap {
  explicit PackedBitmap(const Problem& problem_in)
      : problem(problem_in),
        offsets(Problem::size(panels_of(problem.outputs) + 1)),
        masks(Problem::size(bitmap_masks(problem.outputs, problem.inputs))),
        sums(problem.sums.size()) {
    values.resize(
        Problem::size(measure_bitmap(problem.weights.data(), problem.outputs, problem.inputs, offsets.data())));
    pack_bitmap(problem.weights.data(), problem.outputs, problem.inputs, offsets.data(), masks.data(), values.data(),
                sums.data());
  }
  BitmapWeights weights() const {
    return {masks.data(),          values.data(),   offsets.data(), sums.data(),
            problem.scales.data(), problem.outputs, problem.inputs};
  }
  bool sound() const { return is_sound(weights(), static_cast<std::int64_t>(values.size())); }

  const Problem& problem;
  std::vector<std::int32_t> offsets;
  std::vector<std::uint64_t> masks;
  std::vector<std::int8_t> values;
  std::vector<std::int32_t> sums;
};

struct PackedBlocks {
  explicit PackedBlocks(const Problem& problem_in)
      : problem(problem_in),
        offsets(Problem::size(problem.outputs + 1)),
        masks(Problem::size(problem.outputs * block_words(problem.inputs))),
        sums(problem.sums.size()) {
    values.resize(Problem::size(
        kGroup * measure_block4(problem.weights.data(), problem.outputs, problem.inputs, offsets.data())));
    pack_block4(problem.weights.data(), problem.outputs, problem.inputs, offsets.data(), masks.data(), values.data(),
                sums.data());
  }
  BlockWeights weights() const {
    return {masks.data(),          values.data(),   offsets.data(), sums.data(),
            problem.scales.data(), problem.outputs, problem.inputs};
  }
  bool sound() const { return is_sound(weights(), static_cast<std::int64_t>(values.size())); }

  const Problem& problem;
  std::vector<std::int32_t> offsets;
  std::vector<std::uint64_t> masks;
  std::vector<std::int8_t> values;
  std::vector<std::int32_t> sums;
};

}  // namespace mempool::kernels
