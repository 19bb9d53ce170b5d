// A problem's weights in the sparse formats.
#pragma once

#include <vector>

#include "kernels/problem.h"

namespace mempool::kernels {

template <typename Weights>
struct PackedSparse {
  PackedSparse(const Problem& problem_in, std::int64_t offset_count, std::int64_t mask_count)
      : problem(problem_in),
        offsets(Problem::size(offset_count)),
        masks(Problem::size(mask_count)),
        sums(problem.sums.size()) {}
  Weights weights() const {
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

struct PackedBitmap : PackedSparse<BitmapWeights> {
  explicit PackedBitmap(const Problem& from)
      : PackedSparse(from, panels_of(from.outputs) + 1, bitmap_masks(from.outputs, from.inputs)) {
    values.resize(Problem::size(measure_bitmap(from.weights.data(), from.outputs, from.inputs, offsets.data())));
    pack_bitmap(from.weights.data(), from.outputs, from.inputs, offsets.data(), masks.data(), values.data(),
                sums.data());
  }
};

struct PackedBlocks : PackedSparse<BlockWeights> {
  explicit PackedBlocks(const Problem& from)
      : PackedSparse(from, from.outputs + 1, from.outputs * block_words(from.inputs)) {
    values.resize(
        Problem::size(kGroup * measure_block4(from.weights.data(), from.outputs, from.inputs, offsets.data())));
    pack_block4(from.weights.data(), from.outputs, from.inputs, offsets.data(), masks.data(), values.data(),
                sums.data());
  }
};

// A problem of which two of each four inputs are not zero at most.
inline Problem two_of_four(std::int64_t tokens, std::int64_t outputs, std::int64_t inputs, std::mt19937& random,
                           double density, bool extreme = false) {
  Problem problem(tokens, outputs, inputs, random, extreme, density);
  for (std::int64_t first = 0; first < outputs * inputs; ++first) {
    if (first % inputs % kGroup != 0) continue;
    std::vector<std::int64_t> kept;
    for (std::int64_t i = first; i < first + std::min(kGroup, inputs - first % inputs); ++i) {
      if (problem.weights[Problem::size(i)] != 0) kept.push_back(i);
    }
    for (; kept.size() > 2; kept.pop_back()) {
      std::swap(kept[random() % kept.size()], kept.back());
      problem.weights[Problem::size(kept.back())] = 0;
    }
  }
  pack_dense(problem.weights.data(), outputs, inputs, problem.panels.data(), problem.sums.data());
  return problem;
}

struct PackedSparse24 {
  explicit PackedSparse24(const Problem& problem_in)
      : problem(problem_in),
        values(Problem::size(sparse24_values(problem.outputs, problem.inputs)), 9),
        places(Problem::size(sparse24_places(problem.outputs, problem.inputs))),
        sums(problem.sums.size()),
        fits(pack_sparse24(problem.weights.data(), problem.outputs, problem.inputs, values.data(), places.data(),
                           sums.data())) {}
  Sparse24Weights weights() const {
    return {values.data(), places.data(), sums.data(), problem.scales.data(), problem.outputs, problem.inputs};
  }
  bool sound() const { return is_sound(weights()); }

  const Problem& problem;
  std::vector<std::int8_t> values;
  std::vector<std::uint32_t> places;
  std::vector<std::int32_t> sums;
  bool fits;
};

}  // namespace mempool::kernels
