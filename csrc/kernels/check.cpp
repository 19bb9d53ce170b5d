// Whether packed weights are what packing makes. Sizes are checked before anything is read that depends on them.
#include <bit>

#include "kernels/layout.h"
#include "kernels/pack.h"

namespace mempool::kernels {

bool is_sound(const DenseWeights& packed) noexcept {
  const std::int64_t vectors = groups_of(packed.inputs) * kVectorsOfPanel;
  const std::int8_t* value = packed.panels;
  for (std::int64_t panel = 0; panel < panels_of(packed.outputs); ++panel) {
    std::int32_t sums[kPanel] = {};
    for (std::int64_t vector = 0; vector < vectors; ++vector) {
      for (std::int64_t byte = 0; byte < kVector; ++byte, ++value) {
        const auto [output, input] = content(panel, vector, byte);
        if (*value != 0 && (output >= packed.outputs || input >= packed.inputs)) return false;
        sums[output % kPanel] += *value;
      }
    }
    const std::int64_t first = panel * kPanel;
    if (!std::equal(sums, sums + std::min(kPanel, packed.outputs - first), packed.sums + first)) return false;
  }
  return true;
}

bool is_sound(const BitmapWeights& packed, std::int64_t value_bytes) noexcept {
  const std::int64_t panels = panels_of(packed.outputs);
  const std::int64_t vectors = groups_of(packed.inputs) * kVectorsOfPanel;
  if (packed.offsets[0] != 0 || (std::int64_t{packed.offsets[panels]} + 1) * kVector != value_bytes) return false;
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    const std::uint64_t* const masks = packed.masks + panel * vectors;
    std::int64_t values = 0;
    for (std::int64_t vector = 0; vector < vectors; ++vector) values += std::popcount(masks[vector]);
    const std::int64_t begin = packed.offsets[panel];
    const std::int64_t end = packed.offsets[panel + 1];
    if (end - begin != (values + kVector - 1) / kVector || (end + 1) * kVector > value_bytes) return false;
    const std::int8_t* value = packed.values + begin * kVector;
    std::int32_t sums[kPanel] = {};
    for (std::int64_t vector = 0; vector < vectors; ++vector) {
      for (std::uint64_t left = masks[vector]; left != 0; left &= left - 1) {
        const auto [output, input] = content(panel, vector, std::countr_zero(left));
        if (output >= packed.outputs || input >= packed.inputs) return false;
        sums[output % kPanel] += *value++;
      }
    }
    const std::int64_t first = panel * kPanel;
    if (!std::equal(sums, sums + std::min(kPanel, packed.outputs - first), packed.sums + first)) return false;
  }
  return true;
}

bool is_sound(const BlockWeights& packed, std::int64_t value_bytes) noexcept {
  const std::int64_t groups = groups_of(packed.inputs);
  const std::int64_t words = block_words(packed.inputs);
  const std::uint64_t beyond = groups % 64 == 0 ? 0 : ~std::uint64_t{0} << groups % 64;
  const std::int64_t last_inputs = inputs_of(groups - 1, packed.inputs);
  if (packed.offsets[0] != 0 || packed.offsets[packed.outputs] * kGroup != value_bytes) return false;
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
