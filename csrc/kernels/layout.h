// Where weights lie in the packed formats. For the files that make and check them; all `static`, as in weights.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/weights.h"

namespace mempool::kernels {

// Where an input's weight of an output lies.
static constexpr std::int64_t place(std::int64_t output, std::int64_t input, std::int64_t groups) {
  return ((output / kPanel * groups + input / kGroup) * kPanel + output % kPanel) * kGroup + input % kGroup;
}

// The reverse, for a byte of a vector of a panel.
struct Content {
  std::int64_t output;
  std::int64_t input;
};
static constexpr Content content(std::int64_t panel, std::int64_t vector, std::int64_t byte) {
  const std::int64_t output = vector % kVectorsOfPanel * (kVector / kGroup) + byte / kGroup;
  return {panel * kPanel + output, vector / kVectorsOfPanel * kGroup + byte % kGroup};
}

// How many of a group's inputs there are.
static constexpr std::int64_t inputs_of(std::int64_t group, std::int64_t inputs) {
  return std::min(kGroup, inputs - group * kGroup);
}

}  // namespace mempool::kernels
