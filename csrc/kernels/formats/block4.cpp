#include "kernels/formats/block4.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "common/expects.h"
#include "kernels/layout.h"

namespace mempool::kernels {
namespace {

// The four bytes of a group of an output, zero beyond the last input.
std::uint32_t block(const std::int8_t* row, std::int64_t inputs, std::int64_t group) {
  std::uint32_t four = 0;
  std::memcpy(&four, row + group * kGroup, static_cast<std::size_t>(inputs_of(group, inputs)));
  return four;
}

}  // namespace

std::array<std::int64_t, 3> BlockFormat::sizes(std::int64_t outputs, std::int64_t inputs) noexcept {
  return {outputs * block_words(inputs), kMeasured, outputs + 1};
}

std::int64_t BlockFormat::measure(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs) noexcept {
  std::int64_t blocks = 0;
  for (std::int64_t output = 0; output < outputs; ++output, weights += inputs) {
    for (std::int64_t group = 0; group < groups_of(inputs); ++group) {
      blocks += block(weights, inputs, group) != 0 ? 1 : 0;
    }
  }
  return blocks * kGroup;
}

std::int64_t BlockFormat::measured(const BlockWeights& packed) noexcept {
  return std::int64_t{packed.offsets[packed.outputs]} * kGroup;
}

bool BlockFormat::pack(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::uint64_t* masks,
                       std::int8_t* values, std::int32_t* offsets, std::int32_t* sums) noexcept {
  MEMPOOL_EXPECTS(is_shape(outputs, inputs));
  std::int8_t* to = values;
  std::fill_n(masks, outputs * block_words(inputs), std::uint64_t{0});
  for (std::int64_t output = 0; output < outputs; ++output, masks += block_words(inputs)) {
    const std::int8_t* const row = weights + output * inputs;
    sums[output] = std::accumulate(row, row + inputs, std::int32_t{0});
    offsets[output] = static_cast<std::int32_t>((to - values) / kGroup);
    for (std::int64_t group = 0; group < groups_of(inputs); ++group) {
      const std::uint32_t four = block(row, inputs, group);
      if (four == 0) continue;
      masks[group / 64] |= std::uint64_t{1} << group % 64;
      std::memcpy(to, &four, kGroup);
      to += kGroup;
    }
  }
  offsets[outputs] = static_cast<std::int32_t>((to - values) / kGroup);
  return true;
}

void BlockFormat::unpack(const BlockWeights& packed, std::int8_t* weights) noexcept {
  MEMPOOL_EXPECTS(is_sound(packed, measured(packed)));
  std::fill_n(weights, packed.outputs * packed.inputs, std::int8_t{0});
  const std::int8_t* from = packed.values;
  for (std::int64_t output = 0; output < packed.outputs; ++output, weights += packed.inputs) {
    for (std::int64_t group = 0; group < groups_of(packed.inputs); ++group) {
      if ((packed.masks[output * block_words(packed.inputs) + group / 64] >> group % 64 & 1U) == 0) continue;
      std::memcpy(weights + group * kGroup, from, static_cast<std::size_t>(inputs_of(group, packed.inputs)));
      from += kGroup;
    }
  }
}

bool BlockFormat::is_sound(const BlockWeights& packed, std::int64_t value_bytes) noexcept {
  const std::int64_t groups = groups_of(packed.inputs);
  const std::int64_t words = block_words(packed.inputs);
  const std::uint64_t beyond = groups % 64 == 0 ? 0 : ~std::uint64_t{0} << groups % 64;
  const std::int64_t last_inputs = inputs_of(groups - 1, packed.inputs);
  if (packed.offsets[0] != 0 || measured(packed) != value_bytes) return false;
  for (std::int64_t output = 0; output < packed.outputs; ++output) {
    const std::uint64_t* const masks = packed.masks + output * words;
    std::int64_t blocks = 0;
    for (std::int64_t word = 0; word < words; ++word) blocks += std::popcount(masks[word]);
    const std::int64_t begin = packed.offsets[output];
    const std::int64_t end = packed.offsets[output + 1];
    if (end - begin != blocks || end * kGroup > value_bytes || (masks[words - 1] & beyond) != 0) return false;
    std::int32_t sum = 0;
    for (std::int64_t i = begin * kGroup; i < end * kGroup; ++i) sum += packed.values[i];
    if (sum != packed.sums[output]) return false;
    const bool has_last = (masks[words - 1] >> (groups - 1) % 64 & 1U) != 0;
    for (std::int64_t input = last_inputs; has_last && input < kGroup; ++input) {
      if (packed.values[(end - 1) * kGroup + input] != 0) return false;
    }
  }
  return true;
}

}  // namespace mempool::kernels
