// The place of each weight in a panel, for the files that pack, unpack and check the formats. All functions are
// `static`, as in weights.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/weights.h"

namespace mempool::kernels {

// The index of the weight of an output and an input among the bytes of all panels.
static constexpr std::int64_t place(std::int64_t output, std::int64_t input, std::int64_t groups) {
  return ((output / kPanel * groups + input / kGroup) * kPanel + output % kPanel) * kGroup + input % kGroup;
}

// The reverse of place(): the output and the input whose weight is a byte of a vector of a panel.
struct Content {
  std::int64_t output;
  std::int64_t input;
};
static constexpr Content content(std::int64_t panel, std::int64_t vector, std::int64_t byte) {
  const std::int64_t output = vector % kVectorsOfPanel * (kVector / kGroup) + byte / kGroup;
  return {panel * kPanel + output, vector / kVectorsOfPanel * kGroup + byte % kGroup};
}

// How many inputs a group has: kGroup, fewer in the last.
static constexpr std::int64_t inputs_of(std::int64_t group, std::int64_t inputs) {
  return std::min(kGroup, inputs - group * kGroup);
}

}  // namespace mempool::kernels
