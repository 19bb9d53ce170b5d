// The reference kernels: portable and plain C++, with which tests compare all other sets.
#include <algorithm>

#include "kernels/cpu/block4.inl"
#include "kernels/cpu/finish.inl"
#include "kernels/cpu/quantize.inl"
#include "kernels/cpu/sets.h"

namespace mempool::kernels {
namespace {

// Calls add_products(panel, input, sums) for each panel and token, which adds the products of the token's inputs to the
// sums of the panel's outputs.
template <typename PackedWeights, typename AddProducts>
void multiply(const PackedWeights& weights, const Tokens& tokens, const Output& out, std::int64_t first,
              std::int64_t last, AddProducts add_products) noexcept {
  for (std::int64_t panel = first; panel < last; ++panel) {
    const std::int64_t output = panel * kPanel;
    const std::int64_t left = weights.outputs - output;
    for (std::int64_t token = 0; token < tokens.count; ++token) {
      std::int32_t sums[kPanel] = {};
      add_products(panel, tokens.values + token * token_stride(weights.inputs), sums);
      finish_row(weights, tokens, out, token, output, left < kPanel ? left : kPanel, sums);
    }
  }
}

void dense(const DenseWeights& weights, const Tokens& tokens, const Output& out, std::int64_t first,
           std::int64_t last) noexcept {
  const std::int64_t groups = groups_of(weights.inputs);
  multiply(weights, tokens, out, first, last, [&](std::int64_t panel, const std::uint8_t* input, std::int32_t* sums) {
    for (std::int64_t group = 0; group < groups; ++group, input += kGroup) {
      const std::int8_t* const at = weights.panels + (panel * groups + group) * kPanel * kGroup;
      for (std::int64_t i = 0; i < kPanel * kGroup; ++i) sums[i / kGroup] += at[i] * input[i % kGroup];
    }
  });
}

void bitmap(const BitmapWeights& weights, const Tokens& tokens, const Output& out, std::int64_t first,
            std::int64_t last) noexcept {
  const std::int64_t vectors = groups_of(weights.inputs) * kVectorsOfPanel;
  multiply(weights, tokens, out, first, last, [&](std::int64_t panel, const std::uint8_t* input, std::int32_t* sums) {
    const std::uint64_t* const masks = weights.masks + panel * vectors;
    const std::int8_t* value = weights.values + weights.offsets[panel] * kVector;
    for (std::int64_t vector = 0; vector < vectors; ++vector) {
      const std::uint8_t* const group = input + vector / kVectorsOfPanel * kGroup;
      std::int32_t* const from = sums + vector % kVectorsOfPanel * (kVector / kGroup);
      for (std::int64_t byte = 0; byte < kVector; ++byte) {
        if ((masks[vector] >> byte & 1U) != 0) from[byte / kGroup] += *value++ * group[byte % kGroup];
      }
    }
  });
}

void block4(const BlockWeights& weights, const Tokens& tokens, const Output& out, std::int64_t first,
            std::int64_t last) noexcept {
  const std::int64_t stride = padded_inputs(weights.inputs);
  for (std::int64_t output = first * kPanel; output < last * kPanel && output < weights.outputs; ++output) {
    const std::uint64_t* const masks = weights.masks + output * block_words(weights.inputs);
    for (std::int64_t token = 0; token < tokens.count; ++token) {
      const std::int64_t block = token / kTokenBlock * kTokenBlock;
      const std::int64_t lanes = interleaved_bytes(std::min(kTokenBlock, tokens.count - block), 1) / kGroup;
      const std::uint8_t* const inputs = tokens.values + block * stride + token % kTokenBlock * kGroup;
      const std::int8_t* value = weights.values + std::int64_t{weights.offsets[output]} * kGroup;
      std::int32_t sum = 0;
      for (std::int64_t group = 0; group < groups_of(weights.inputs); ++group) {
        if ((masks[group / 64] >> group % 64 & 1U) == 0) continue;
        for (std::int64_t i = 0; i < kGroup; ++i) sum += *value++ * inputs[group * lanes * kGroup + i];
      }
      finish_row(weights, tokens, out, token, output, 1, &sum);
    }
  }
}

}  // namespace

const KernelSet kReferenceKernels = {&quantize<float>, &quantize<std::uint16_t>, &dense, &bitmap, &interleave, &block4};

}  // namespace mempool::kernels
