// A multiplication with its plain answer, and the sets of kernels that this machine can run.
#pragma once

#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "kernels/formats/formats.h"
#include "kernels/kernels.h"

namespace mempool::kernels {

struct Problem {
  // `density`: the share of weights that are not zero, about. `extreme`: of the largest magnitudes alone.
  Problem(std::int64_t tokens_in, std::int64_t outputs_in, std::int64_t inputs_in, std::mt19937& random, bool extreme,
          double density = 1.0)
      : count(tokens_in), outputs(outputs_in), inputs(inputs_in), weights(size(outputs * inputs)) {
    std::uniform_int_distribution<int> any(-128, 127);
    std::bernoulli_distribution kept(density);
    for (std::int8_t& weight : weights) {
      if (!kept(random)) continue;
      weight = static_cast<std::int8_t>(extreme ? (random() % 2 == 0 ? -128 : 127) : any(random));
    }
    panels.resize(size(dense_bytes(outputs, inputs)));
    sums.resize(size(outputs));
    DenseFormat::pack(weights.data(), outputs, inputs, panels.data(), sums.data());
    values.assign(size(count * token_stride(inputs)), kZero);
    std::uniform_int_distribution<int> byte(1, 255);
    for (std::int64_t token = 0; token < count; ++token) {
      for (std::int64_t input = 0; input < inputs; ++input) {
        values[size(token * token_stride(inputs) + input)] =
            static_cast<std::uint8_t>(extreme ? (random() % 2 == 0 ? 1 : 255) : byte(random));
      }
    }
    std::uniform_real_distribution<float> scale(0.001F, 2.0F);
    for (std::int64_t i = 0; i < outputs; ++i) scales.push_back(scale(random)), bias.push_back(scale(random) - 1.0F);
    for (std::int64_t i = 0; i < count; ++i) token_scales.push_back(scale(random));
  }

  static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }
  DenseWeights dense() const { return {panels.data(), sums.data(), scales.data(), outputs, inputs}; }
  Tokens tokens() const { return {values.data(), token_scales.data(), count}; }
  std::int32_t exact(std::int64_t token, std::int64_t output) const {
    std::int64_t sum = 0;
    for (std::int64_t input = 0; input < inputs; ++input) {
      sum += (int{values[size(token * token_stride(inputs) + input)]} - kZero) * weights[size(output * inputs + input)];
    }
    return static_cast<std::int32_t>(sum);
  }

  // `got`: [tokens][outputs], and maybe more.
  void check_sums(const std::vector<std::int32_t>& got) const {
    for (std::int64_t token = 0; token < count; ++token) {
      for (std::int64_t output = 0; output < outputs; ++output) {
        CHECK_EQ(got[size(token * outputs + output)], exact(token, output));
      }
    }
  }

  std::int64_t count;
  std::int64_t outputs;
  std::int64_t inputs;
  std::vector<std::int8_t> weights;
  std::vector<std::int8_t> panels;
  std::vector<std::int32_t> sums;
  std::vector<float> scales;
  std::vector<float> bias;
  std::vector<std::uint8_t> values;
  std::vector<float> token_scales;
};

// [count][inputs] activations, at least 7 rows; rows 1 to 6 are hard to quantize: zero, with a NaN, with an infinite
// value, next to nothing, halves, and the largest there are.
inline std::vector<float> awkward_rows(std::int64_t count, std::int64_t inputs, std::mt19937& random) {
  std::normal_distribution<float> any(0.0F, 3.0F);
  std::vector<float> rows(Problem::size(count * inputs));
  for (float& value : rows) value = any(random);
  const auto row = [&](std::int64_t i) { return rows.data() + i * inputs; };
  std::fill(row(1), row(2), 0.0F);
  row(2)[inputs - 1] = std::numeric_limits<float>::quiet_NaN();
  row(3)[0] = -std::numeric_limits<float>::infinity();
  std::fill(row(4), row(5), 1e-42F);
  for (std::int64_t i = 0; i < inputs; ++i) row(5)[i] = static_cast<float>(i % 255 - 127) / 2;
  std::fill(row(6), row(7), std::numeric_limits<float>::max());
  return rows;
}

template <typename Action>
void for_each_set(Action action) {
  int sets = 0;
  for (int i = 0; i < kIsas; ++i) {
    if (const KernelSet* const set = kernels_of(static_cast<Isa>(i))) action(*set), ++sets;
  }
  CHECK(sets > 0);
}

}  // namespace mempool::kernels
