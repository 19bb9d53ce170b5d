// Bitmap-sparse weights: packed and unpacked, multiplied by every set, and refused when they are not sound.
#include <utility>

#include "kernels/packed.h"

using namespace mempool::kernels;

namespace {

using Packed = PackedBitmap;

void check_exact(const Problem& problem) {
  const Packed packed(problem);
  CHECK(packed.sums == problem.sums);
  for_each_set([&](const KernelSet& set) {
    std::vector<std::int32_t> out(Problem::size(problem.count * problem.outputs) + 1, 77);
    set.bitmap(packed.weights(), problem.tokens(), {out.data(), nullptr, OutputType::accumulators}, 0,
               panels_of(problem.outputs));
    CHECK_EQ(out.back(), 77);
    problem.check_sums(out);
  });
}

}  // namespace

TEST(what_is_packed_as_a_bitmap_is_unpacked_as_it_was) {
  std::mt19937 random(1);
  for (const double density : {0.0, 0.03, 0.5, 1.0}) {
    for (const auto& [outputs, inputs] : {std::pair{1, 1}, {64, 4}, {65, 5}, {200, 33}, {1, 130}}) {
      const Problem problem(1, outputs, inputs, random, false, density);
      const Packed packed(problem);
      CHECK(packed.sound());
      std::vector<std::int8_t> back(problem.weights.size(), 9);
      BitmapFormat::unpack(packed.weights(), back.data());
      CHECK(back == problem.weights);
    }
  }
}

TEST(half_of_the_weights_take_five_eighths_of_the_bytes) {
  std::mt19937 random(2);
  Problem problem(1, 64, 1024, random, false, 0.0);
  for (std::size_t i = 0; i < problem.weights.size(); i += 2) problem.weights[i] = 1;
  const Packed packed(problem);
  CHECK_EQ(8 * packed.masks.size() + packed.values.size() - kVector, 64u * 1024 * 5 / 8);
}

TEST(sparse_sums_are_exact_for_every_number_of_tokens) {
  std::mt19937 random(3);
  for (std::int64_t count = 0; count <= 20; ++count) check_exact(Problem(count, 130, 37, random, false, 0.5));
  for (const std::int64_t count : {191, 192, 193, 200}) check_exact(Problem(count, 67, 1100, random, false, 0.2));
}

TEST(sparse_sums_are_exact_for_odd_shapes_and_densities) {
  std::mt19937 random(4);
  for (int i = 0; i < 60; ++i) {
    const double density = 0.01 * static_cast<double>(random() % 101);
    check_exact(Problem(1 + random() % 16, 1 + random() % 200, 1 + random() % 300, random, i % 2 == 0, density));
  }
}

TEST(sparse_outputs_are_those_of_the_same_weights_kept_dense) {
  std::mt19937 random(5);
  const Problem problem(9, 150, 77, random, false, 0.3);
  const Packed packed(problem);
  for_each_set([&](const KernelSet& set) {
    std::vector<float> dense(Problem::size(problem.count * problem.outputs));
    std::vector<float> sparse(dense.size());
    const std::int64_t panels = panels_of(problem.outputs);
    set.dense(problem.dense(), problem.tokens(), {dense.data(), problem.bias.data(), OutputType::float32}, 0, panels);
    set.bitmap(packed.weights(), problem.tokens(), {sparse.data(), problem.bias.data(), OutputType::float32}, 0,
               panels);
    CHECK(sparse == dense);
  });
}

TEST(what_is_not_sound_is_seen) {
  std::mt19937 random(6);
  const Problem problem(1, 130, 37, random, false, 0.5);
  const auto broken = [&](auto change) {
    Packed packed(problem);
    CHECK(packed.sound());
    change(packed);
    return !packed.sound();
  };
  CHECK(broken([](Packed& packed) { packed.masks.back() |= std::uint64_t{1} << 63; }));  // beyond N and K
  CHECK(broken([](Packed& packed) { packed.masks[0] = packed.masks[1] = packed.masks[2] = ~std::uint64_t{0}; }));
  CHECK(broken([](Packed& packed) { packed.offsets[0] = 1; }));
  CHECK(broken([](Packed& packed) { packed.offsets[1] += 1; }));
  CHECK(broken([](Packed& packed) { packed.offsets[1] = -5; }));
  CHECK(broken([](Packed& packed) { packed.values.resize(packed.values.size() - kVector); }));
  CHECK(broken([](Packed& packed) { packed.values[5] ^= 1; }));
  CHECK(broken([](Packed& packed) { packed.sums[129] += 1; }));
}
