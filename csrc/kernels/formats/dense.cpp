#include "kernels/formats/dense.h"

#include <algorithm>

#include "common/expects.h"
#include "kernels/layout.h"

namespace mempool::kernels {

std::array<std::int64_t, 1> DenseFormat::sizes(std::int64_t outputs, std::int64_t inputs) noexcept {
  return {dense_bytes(outputs, inputs)};
}

bool DenseFormat::pack(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::int8_t* panels,
                       std::int32_t* sums) noexcept {
  MEMPOOL_EXPECTS(is_shape(outputs, inputs));
  const std::int64_t groups = groups_of(inputs);
  std::fill_n(panels, dense_bytes(outputs, inputs), std::int8_t{0});
  for (std::int64_t output = 0; output < outputs; ++output) {
    const std::int8_t* const row = weights + output * inputs;
    std::int32_t sum = 0;
    for (std::int64_t input = 0; input < inputs; ++input) {
      panels[place(output, input, groups)] = row[input];
      sum += row[input];
    }
    sums[output] = sum;
  }
  return true;
}

void DenseFormat::unpack(const DenseWeights& packed, std::int8_t* weights) noexcept {
  MEMPOOL_EXPECTS(is_shape(packed.outputs, packed.inputs));
  const std::int64_t groups = groups_of(packed.inputs);
  for (std::int64_t output = 0; output < packed.outputs; ++output) {
    for (std::int64_t input = 0; input < packed.inputs; ++input) {
      *weights++ = packed.panels[place(output, input, groups)];
    }
  }
}

bool DenseFormat::is_sound(const DenseWeights& packed) noexcept {
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

}  // namespace mempool::kernels
