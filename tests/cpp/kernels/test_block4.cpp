// Block-sparse weights: packed and unpacked, multiplied by every set, and refused when they are not sound.
#include <numeric>
#include <utility>

#include "kernels/packed.h"

using namespace mempool::kernels;

namespace {

// Whole blocks of a problem's weights to zero; `density`: of those that stay.
Problem pruned(std::int64_t tokens, std::int64_t outputs, std::int64_t inputs, std::mt19937& random, bool extreme,
               double density) {
  Problem problem(tokens, outputs, inputs, random, extreme);
  std::bernoulli_distribution kept(density);
  for (std::int64_t output = 0; output < outputs; ++output) {
    for (std::int64_t input = 0; input < inputs; input += kGroup) {
      if (kept(random)) continue;
      for (std::int64_t i = input; i < std::min(inputs, input + kGroup); ++i) {
        problem.weights[Problem::size(output * inputs + i)] = 0;
      }
    }
  }
  return problem;
}

using Packed = PackedBlocks;

void check_exact(const Problem& problem) {
  const Packed packed(problem);
  for (std::int64_t output = 0; output < problem.outputs; ++output) {
    const auto row = problem.weights.begin() + output * problem.inputs;
    CHECK_EQ(packed.sums[Problem::size(output)], std::accumulate(row, row + problem.inputs, 0));
  }
  for_each_set([&](const KernelSet& set) {
    std::vector<std::uint8_t> interleaved(Problem::size(interleaved_bytes(problem.count, problem.inputs)));
    // In parts, as threads would.
    for (std::int64_t first = 0; first < problem.count; first += kTokenBlock) {
      set.interleave(problem.tokens(), problem.inputs, first, std::min(problem.count, first + kTokenBlock),
                     interleaved.data());
    }
    std::vector<std::int32_t> out(Problem::size(problem.count * problem.outputs) + 1, 77);
    const Tokens tokens{interleaved.data(), problem.token_scales.data(), problem.count};
    set.block4(packed.weights(), tokens, {out.data(), nullptr, OutputType::accumulators}, 0,
               panels_of(problem.outputs));
    CHECK_EQ(out.back(), 77);
    problem.check_sums(out);
  });
}

}  // namespace

TEST(what_is_packed_as_blocks_is_unpacked_as_it_was) {
  std::mt19937 random(1);
  for (const double density : {0.0, 0.03, 0.5, 1.0}) {
    for (const auto& [outputs, inputs] : {std::pair{1, 1}, {64, 4}, {65, 5}, {20, 256}, {9, 259}, {1, 1030}}) {
      const Problem problem = pruned(1, outputs, inputs, random, false, density);
      const Packed packed(problem);
      CHECK(packed.sound());
      std::vector<std::int8_t> back(problem.weights.size(), 9);
      BlockFormat::unpack(packed.weights(), back.data());
      CHECK(back == problem.weights);
    }
  }
}

TEST(a_fifth_of_the_blocks_takes_less_than_a_quarter_of_the_bytes) {
  std::mt19937 random(2);
  Problem problem = pruned(1, 64, 1280, random, false, 0.0);
  for (std::size_t i = 0; i < problem.weights.size(); i += 20) problem.weights[i] = 1;
  const Packed packed(problem);
  CHECK_EQ(8 * packed.masks.size() + packed.values.size(), 64u * (1280 / 5 + 1280 / 32));
}

TEST(block_sums_are_exact_for_every_number_of_tokens) {
  std::mt19937 random(3);
  for (std::int64_t count = 0; count <= 70; ++count) check_exact(pruned(count, 67, 37, random, false, 0.5));
  for (const std::int64_t count : {127, 128, 129, 200}) check_exact(pruned(count, 67, 300, random, false, 0.2));
}

TEST(block_sums_are_exact_for_odd_shapes_and_densities) {
  std::mt19937 random(4);
  for (int i = 0; i < 60; ++i) {
    const double density = 0.01 * static_cast<double>(random() % 101);
    check_exact(pruned(1 + random() % 40, 1 + random() % 200, 1 + random() % 700, random, i % 2 == 0, density));
  }
}

TEST(block_sums_are_exact_for_the_most_inputs) {
  std::mt19937 random(5);
  check_exact(pruned(3, 2, kMostInputs, random, true, 1.0));
}

TEST(blocks_that_are_not_sound_are_seen) {
  std::mt19937 random(6);
  const Problem problem = pruned(1, 20, 37, random, false, 1.0);
  const auto broken = [&](auto change) {
    Packed packed(problem);
    CHECK(packed.sound());
    change(packed);
    return !packed.sound();
  };
  CHECK(broken([](Packed& packed) { packed.masks[0] |= std::uint64_t{1} << 10; }));  // beyond K
  CHECK(broken([](Packed& packed) { packed.masks[0] &= ~std::uint64_t{1}; }));
  CHECK(broken([](Packed& packed) { packed.offsets[0] = 1; }));
  CHECK(broken([](Packed& packed) { packed.offsets[3] += 1; }));
  CHECK(broken([](Packed& packed) { packed.offsets[3] = -5; }));
  CHECK(broken([](Packed& packed) { packed.values.resize(packed.values.size() - kGroup); }));
  CHECK(broken([](Packed& packed) { packed.values.back() = 1, packed.sums.back() += 1; }));  // an input beyond K
  CHECK(broken([](Packed& packed) { packed.values[5] ^= 1; }));
  CHECK(broken([](Packed& packed) { packed.sums[19] += 1; }));
}
