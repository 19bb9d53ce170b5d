#include "kernels/pack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/layout.h"

namespace mempool::kernels {
namespace {

// The bytes of a group of an output, zero beyond its inputs.
std::uint32_t block(const std::int8_t* row, std::int64_t inputs, std::int64_t group) {
  std::uint32_t four = 0;
  std::memcpy(&four, row + group * kGroup, static_cast<std::size_t>(inputs_of(group, inputs)));
  return four;
}

}  // namespace

void pack_dense(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::int8_t* panels,
                std::int32_t* sums) noexcept {
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
}

void unpack_dense(const std::int8_t* panels, std::int64_t outputs, std::int64_t inputs, std::int8_t* weights) noexcept {
  const std::int64_t groups = groups_of(inputs);
  for (std::int64_t output = 0; output < outputs; ++output) {
    for (std::int64_t input = 0; input < inputs; ++input) {
      weights[output * inputs + input] = panels[place(output, input, groups)];
    }
  }
}

std::int64_t measure_bitmap(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs,
                            std::int32_t* offsets) noexcept {
  std::int64_t end = 0;
  for (std::int64_t panel = 0; panel < panels_of(outputs); ++panel) {
    offsets[panel] = static_cast<std::int32_t>(end);
    const std::int64_t first = panel * kPanel;
    const std::int64_t last = std::min(outputs, first + kPanel);
    const std::int64_t zeros = std::count(weights + first * inputs, weights + last * inputs, std::int8_t{0});
    end += ((last - first) * inputs - zeros + kVector - 1) / kVector;
  }
  offsets[panels_of(outputs)] = static_cast<std::int32_t>(end);
  return (end + 1) * kVector;
}

void pack_bitmap(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, const std::int32_t* offsets,
                 std::uint64_t* masks, std::int8_t* values, std::int32_t* sums) noexcept {
  const std::int64_t panels = panels_of(outputs);
  std::memset(values, 0, static_cast<std::size_t>((offsets[panels] + 1) * kVector));
  std::fill(sums, sums + outputs, 0);
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    std::int8_t* to = values + offsets[panel] * kVector;
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
  }
}

void unpack_bitmap(const BitmapWeights& packed, std::int8_t* weights) noexcept {
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

std::int64_t measure_block4(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs,
                            std::int32_t* offsets) noexcept {
  std::int64_t end = 0;
  for (std::int64_t output = 0; output < outputs; ++output) {
    offsets[output] = static_cast<std::int32_t>(end);
    for (std::int64_t group = 0; group < groups_of(inputs); ++group) {
      end += block(weights + output * inputs, inputs, group) != 0 ? 1 : 0;
    }
  }
  offsets[outputs] = static_cast<std::int32_t>(end);
  return end;
}

void pack_block4(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, const std::int32_t* offsets,
                 std::uint64_t* masks, std::int8_t* values, std::int32_t* sums) noexcept {
  std::fill(masks, masks + outputs * block_words(inputs), 0);
  for (std::int64_t output = 0; output < outputs; ++output, masks += block_words(inputs)) {
    const std::int8_t* const row = weights + output * inputs;
    sums[output] = std::accumulate(row, row + inputs, std::int32_t{0});
    std::int8_t* to = values + offsets[output] * kGroup;
    for (std::int64_t group = 0; group < groups_of(inputs); ++group) {
      const std::uint32_t four = block(row, inputs, group);
      if (four == 0) continue;
      masks[group / 64] |= std::uint64_t{1} << group % 64;
      std::memcpy(to, &four, kGroup);
      to += kGroup;
    }
  }
}

void unpack_block4(const BlockWeights& packed, std::int8_t* weights) noexcept {
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

std::int64_t quantize_weights(const float* weights, std::int64_t outputs, std::int64_t inputs, std::int8_t* quantized,
                              float* scales) noexcept {
  for (std::int64_t output = 0; output < outputs; ++output) {
    const float* const row = weights + output * inputs;
    float largest = 0;
    for (std::int64_t input = 0; input < inputs; ++input) {
      if (!std::isfinite(row[input])) return output;
      largest = std::max(largest, std::fabs(row[input]));
    }
    const float scale = largest / 127.0F;
    const bool is_zero = scale < 1e-37F;  // its inverse would be infinite
    scales[output] = is_zero ? 0.0F : scale;
    for (std::int64_t input = 0; input < inputs; ++input) {
      const float value = is_zero ? 0.0F : std::nearbyint(row[input] / scale);
      quantized[output * inputs + input] = static_cast<std::int8_t>(std::clamp(value, -127.0F, 127.0F));
    }
  }
  return -1;
}

}  // namespace mempool::kernels
