#include "kernels/formats/bitmap.h"

#include <algorithm>
#include <bit>

#include "common/expects.h"
#include "kernels/layout.h"

namespace mempool::kernels {

std::array<std::int64_t, 3> BitmapFormat::sizes(std::int64_t outputs, std::int64_t inputs) noexcept {
  return {bitmap_masks(outputs, inputs), kMeasured, panels_of(outputs) + 1};
}

std::int64_t BitmapFormat::measure(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs) noexcept {
  std::int64_t vectors = 1;
  for (std::int64_t first = 0; first < outputs; first += kPanel) {
    const std::int64_t last = std::min(outputs, first + kPanel);
    const std::int64_t zeros = std::count(weights + first * inputs, weights + last * inputs, std::int8_t{0});
    vectors += ((last - first) * inputs - zeros + kVector - 1) / kVector;
  }
  return vectors * kVector;
}

std::int64_t BitmapFormat::measured(const BitmapWeights& packed) noexcept {
  return (std::int64_t{packed.offsets[panels_of(packed.outputs)]} + 1) * kVector;
}

bool BitmapFormat::pack(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::uint64_t* masks,
                        std::int8_t* values, std::int32_t* offsets, std::int32_t* sums) noexcept {
  MEMPOOL_EXPECTS(is_shape(outputs, inputs));
  std::int8_t* to = values;
  std::fill_n(sums, outputs, 0);
  for (std::int64_t panel = 0; panel < panels_of(outputs); ++panel) {
    *offsets++ = static_cast<std::int32_t>((to - values) / kVector);
    for (std::int64_t vector = 0; vector < groups_of(inputs) * kVectorsOfPanel; ++vector) {
      std::uint64_t mask = 0;
      for (std::int64_t byte = 0; byte < kVector; ++byte) {
        const auto [output, input] = content(panel, vector, byte);
        const std::int8_t weight =
            output < outputs && input < inputs ? weights[output * inputs + input] : std::int8_t{0};
        if (weight == 0) continue;
        mask |= std::uint64_t{1} << byte;
        *to++ = weight;
        sums[output] += weight;
      }
      *masks++ = mask;
    }
    while ((to - values) % kVector != 0) *to++ = 0;
  }
  *offsets = static_cast<std::int32_t>((to - values) / kVector);
  std::fill_n(to, kVector, std::int8_t{0});
  return true;
}

void BitmapFormat::unpack(const BitmapWeights& packed, std::int8_t* weights) noexcept {
  MEMPOOL_EXPECTS(is_sound(packed, measured(packed)));
  std::fill_n(weights, packed.outputs * packed.inputs, std::int8_t{0});
  const std::uint64_t* masks = packed.masks;
  for (std::int64_t panel = 0; panel < panels_of(packed.outputs); ++panel) {
    const std::int8_t* from = packed.values + packed.offsets[panel] * kVector;
    for (std::int64_t vector = 0; vector < groups_of(packed.inputs) * kVectorsOfPanel; ++vector) {
      for (std::uint64_t mask = *masks++; mask != 0; mask &= mask - 1) {
        const auto [output, input] = content(panel, vector, std::countr_zero(mask));
        weights[output * packed.inputs + input] = *from++;
      }
    }
  }
}

bool BitmapFormat::is_sound(const BitmapWeights& packed, std::int64_t value_bytes) noexcept {
  const std::int64_t panels = panels_of(packed.outputs);
  const std::int64_t vectors = groups_of(packed.inputs) * kVectorsOfPanel;
  if (packed.offsets[0] != 0 || measured(packed) != value_bytes) return false;
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

}  // namespace mempool::kernels
