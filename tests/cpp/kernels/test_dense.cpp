// Every set of kernels against sums that are written down plainly: odd shapes, extremes, what is no number.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/problem.h"
#include "kernels/quantize_weights.h"

using namespace mempool::kernels;

namespace {

template <typename Value>
std::vector<Value> run(const KernelSet& set, const Problem& problem, OutputType type, bool with_bias) {
  constexpr std::size_t kGuard = 16;  // behind the last output nothing is written
  std::vector<Value> out(Problem::size(problem.count * problem.outputs) + kGuard, Value{77});
  const Output output{out.data(), with_bias ? problem.bias.data() : nullptr, type};
  set.dense(problem.dense(), problem.tokens(), output, 0, panels_of(problem.outputs));
  for (std::size_t i = out.size() - kGuard; i < out.size(); ++i) CHECK_EQ(out[i], Value{77});
  out.resize(out.size() - kGuard);
  return out;
}

void check_exact(const Problem& problem) {
  for_each_set([&](const KernelSet& set) {
    problem.check_sums(run<std::int32_t>(set, problem, OutputType::accumulators, false));
  });
}

}  // namespace

TEST(packing_and_unpacking_are_inverses) {
  std::mt19937 random(1);
  for (const auto& [outputs, inputs] : {std::pair{1, 1}, {63, 3}, {64, 4}, {65, 5}, {200, 33}, {1, 130}}) {
    const Problem problem(1, outputs, inputs, random, false);
    std::vector<std::int8_t> back(problem.weights.size());
    DenseFormat::unpack(problem.dense(), back.data());
    CHECK(back == problem.weights);
  }
}

TEST(sums_are_exact_for_every_number_of_tokens) {
  std::mt19937 random(2);
  for (std::int64_t count = 0; count <= 20; ++count) check_exact(Problem(count, 130, 37, random, false));
  check_exact(Problem(70, 67, 129, random, false));
}

TEST(sums_are_exact_for_odd_shapes) {
  std::mt19937 random(3);
  for (int i = 0; i < 60; ++i) {
    check_exact(Problem(1 + random() % 9, 1 + random() % 200, 1 + random() % 300, random, false));
  }
}

TEST(extremes_do_not_saturate) {
  std::mt19937 random(4);
  for (const std::int64_t inputs : {4, 64, 1001}) check_exact(Problem(7, 66, inputs, random, true));
  Problem most(1, 3, kMostInputs, random, false);  // the largest sums that there are
  std::fill(most.weights.begin(), most.weights.end(), std::int8_t{-128});
  std::fill(most.values.begin(), most.values.end(), std::uint8_t{255});
  DenseFormat::pack(most.weights.data(), 3, kMostInputs, most.panels.data(), most.sums.data());
  check_exact(most);
}

TEST(all_sets_give_the_same_outputs) {
  std::mt19937 random(5);
  for (const bool with_bias : {false, true}) {
    const Problem problem(9, 150, 77, random, false);
    const KernelSet& reference = *kernels_of(Isa::reference);
    const auto floats = run<float>(reference, problem, OutputType::float32, with_bias);
    const auto halves = run<std::uint16_t>(reference, problem, OutputType::bfloat16, with_bias);
    for (std::int64_t token = 0; token < problem.count; ++token) {
      for (std::int64_t output = 0; output < problem.outputs; ++output) {
        const std::size_t at = Problem::size(token * problem.outputs + output);
        const double expected = double{problem.token_scales[Problem::size(token)]} *
                                    problem.scales[Problem::size(output)] * problem.exact(token, output) +
                                (with_bias ? problem.bias[Problem::size(output)] : 0.0F);
        CHECK(std::fabs(floats[at] - expected) <= 1e-6 * std::fabs(expected) + 1e-5);
        const std::uint32_t bits = std::uint32_t{halves[at]} << 16;
        float half = 0;
        std::memcpy(&half, &bits, sizeof(half));
        CHECK(std::fabs(half - floats[at]) <= std::fabs(floats[at]) / 256);
      }
    }
    for_each_set([&](const KernelSet& set) {
      CHECK(run<float>(set, problem, OutputType::float32, with_bias) == floats);
      CHECK(run<std::uint16_t>(set, problem, OutputType::bfloat16, with_bias) == halves);
    });
  }
}

TEST(tokens_are_quantized_alike_by_every_set) {
  std::mt19937 random(6);
  for (const std::int64_t inputs : {1, 3, 16, 130}) {
    const std::vector<float> rows = awkward_rows(8, inputs, random);
    const auto row = [&](std::int64_t i) { return rows.data() + i * inputs; };
    std::vector<std::uint8_t> first;
    std::vector<std::uint32_t> first_scales;
    for_each_set([&](const KernelSet& set) {
      std::vector<std::uint8_t> values(Problem::size(8 * token_stride(inputs)), 9);
      std::vector<float> scales(8, -1.0F);
      set.quantize_float32(rows.data(), inputs, 0, 8, values.data(), scales.data());
      CHECK_EQ(scales[1], 0.0F);
      CHECK(std::isnan(scales[2]) && std::isnan(scales[3]) && !std::isnan(scales[0]));
      CHECK_EQ(scales[4], 0.0F);
      for (const std::int64_t token : {0, 5, 6, 7}) {
        for (std::int64_t i = 0; i < inputs; ++i) {
          const int q = values[Problem::size(token * token_stride(inputs) + i)] - kZero;
          const float scale = scales[Problem::size(token)];
          CHECK(q >= -127 && q <= 127);
          CHECK(std::fabs(row(token)[i] / scale - static_cast<float>(q)) <= 0.5001F);
        }
      }
      std::vector<std::uint32_t> bits(8);
      std::memcpy(bits.data(), scales.data(), 32);
      if (first.empty()) first = values, first_scales = bits;
      CHECK(values == first);
      CHECK(bits == first_scales);
    });
  }
}

TEST(weights_that_are_no_numbers_are_named) {
  std::vector<float> weights(6 * 10, 0.5F);
  std::vector<std::int8_t> quantized(60);
  std::vector<float> scales(6);
  CHECK_EQ(quantize_weights(weights.data(), 6, 10, quantized.data(), scales.data()), -1);
  CHECK_EQ(quantized[7], 127);
  weights[43] = std::numeric_limits<float>::infinity();
  CHECK_EQ(quantize_weights(weights.data(), 6, 10, quantized.data(), scales.data()), 4);
  weights[15] = std::numeric_limits<float>::quiet_NaN();
  CHECK_EQ(quantize_weights(weights.data(), 6, 10, quantized.data(), scales.data()), 1);
}

TEST(a_dense_weight_that_is_not_sound_is_seen) {
  std::mt19937 random(21);
  Problem problem(1, 70, 37, random, false);
  CHECK(DenseFormat::is_sound(problem.dense()));
  problem.panels[3] ^= 1;
  CHECK(!DenseFormat::is_sound(problem.dense()));
  problem.panels[3] ^= 1;
  problem.sums[69] += 1;
  CHECK(!DenseFormat::is_sound(problem.dense()));
  problem.sums[69] -= 1;
  problem.panels.back() = 1;  // beyond N and K
  CHECK(!DenseFormat::is_sound(problem.dense()));
}
