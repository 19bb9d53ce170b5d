// A problem's weights in the sparse formats.
#pragma once

#include <vector>

#include "kernels/problem.h"

namespace mempool::kernels {

template <typename Format>
struct PackedSparse {
  explicit PackedSparse(const Problem& from) : problem(from), sums(from.sums.size()) {
    const auto [mask_count, none, offset_count] = Format::sizes(from.outputs, from.inputs);
    masks.resize(Problem::size(mask_count));
    offsets.resize(Problem::size(offset_count));
    values.resize(Problem::size(Format::measure(from.weights.data(), from.outputs, from.inputs)));
    Format::pack(from.weights.data(), from.outputs, from.inputs, masks.data(), values.data(), offsets.data(),
                 sums.data());
  }
  typename Format::Weights weights() const {
    return {masks.data(),          values.data(),   offsets.data(), sums.data(),
            problem.scales.data(), problem.outputs, problem.inputs};
  }
  bool sound() const { return Format::is_sound(weights(), static_cast<std::int64_t>(values.size())); }

  const Problem& problem;
  std::vector<std::int32_t> offsets;
  std::vector<std::uint64_t> masks;
  std::vector<std::int8_t> values;
  std::vector<std::int32_t> sums;
};

using PackedBitmap = PackedSparse<BitmapFormat>;
using PackedBlocks = PackedSparse<BlockFormat>;

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
  DenseFormat::pack(problem.weights.data(), outputs, inputs, problem.panels.data(), problem.sums.data());
  return problem;
}

struct PackedSparse24 {
  explicit PackedSparse24(const Problem& problem_in)
      : problem(problem_in),
        values(Problem::size(sparse24_values(problem.outputs, problem.inputs)), 9),
        places(Problem::size(sparse24_places(problem.outputs, problem.inputs))),
        sums(problem.sums.size()),
        fits(Sparse24Format::pack(problem.weights.data(), problem.outputs, problem.inputs, values.data(), places.data(),
                                  sums.data())) {}
  Sparse24Weights weights() const {
    return {values.data(), places.data(), sums.data(), problem.scales.data(), problem.outputs, problem.inputs};
  }
  bool sound() const { return Sparse24Format::is_sound(weights()); }

  const Problem& problem;
  std::vector<std::int8_t> values;
  std::vector<std::uint32_t> places;
  std::vector<std::int32_t> sums;
  bool fits;
};

}  // namespace mempool::kernels
