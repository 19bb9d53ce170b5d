// Sparse kernels on the GPU give the CPU's outputs, bit for bit.
#include "gpu_problem.h"
#include "kernels/cuda/bitmap_decode.h"
#include "kernels/cuda/block4_decode.h"
#include "kernels/cuda/sparse24.h"
#include "kernels/packed.h"
#include "schedules.h"

using namespace mempool::kernels;

namespace {

void repack_dense(Problem& problem) {
  pack_dense(problem.weights.data(), problem.outputs, problem.inputs, problem.panels.data(), problem.sums.data());
}

void check_bitmap(const Problem& problem, int splits) {
  const PackedBitmap packed(problem);
  Partials partials(problem);
  check_outputs(problem, [&](const cuda::DeviceTokens& tokens, const Output& output) {
    cuda::bitmap_decode_linear(packed.weights(), tokens, output, partials.get(), splits, nullptr);
  });
}

void check_block4(const Problem& problem, int splits) {
  const PackedBlocks packed(problem);
  Partials partials(problem);
  check_outputs(problem, [&](const cuda::DeviceTokens& tokens, const Output& output) {
    cuda::block4_decode_linear(packed.weights(), tokens, output, partials.get(), splits, nullptr);
  });
}

// Two of each four inputs at most.
Problem sparse24(std::int64_t count, std::int64_t outputs, std::int64_t inputs, std::mt19937& random, double density) {
  Problem problem(count, outputs, inputs, random, false, density);
  for (std::int64_t output = 0; output < outputs; ++output) {
    for (std::int64_t input = 0; input < inputs; input += 4) {
      std::vector<std::int64_t> kept;
      for (std::int64_t i = input; i < std::min(input + 4, inputs); ++i) {
        if (problem.weights[Problem::size(output * inputs + i)] != 0) kept.push_back(output * inputs + i);
      }
      for (; kept.size() > 2; kept.pop_back()) {
        std::swap(kept[random() % kept.size()], kept.back());
        problem.weights[Problem::size(kept.back())] = 0;
      }
    }
  }
  repack_dense(problem);
  return problem;
}

void check_sparse24(const Problem& problem) {
  Device<std::int8_t> values(Problem::size(cuda::sparse24_value_bytes(problem.outputs, problem.inputs)));
  Device<std::uint32_t> places(Problem::size(cuda::sparse24_place_words(problem.outputs, problem.inputs)));
  CHECK(cuda::pack_sparse24(problem.weights.data(), problem.outputs, problem.inputs, values.data(), places.data()));
  const cuda::Sparse24Weights weights = {values.data(), places.data(), problem.scales.data(), problem.outputs,
                                         problem.inputs};
  check_outputs(problem, [&](const cuda::DeviceTokens& tokens, const Output& output) {
    cuda::sparse24_gemm_linear(weights, tokens, output, nullptr);
  });
}

}  // namespace

TEST(bitmap_decode_is_exact) {
  std::mt19937 random(1);
  emulator::for_each_schedule([&] {
    for (const std::int64_t count : {1, 2, 4, 7, 18}) {
      check_bitmap(Problem(count, 1 + random() % 150, 1 + random() % 700, random, false, 0.5), 1 + count % 3);
    }
    check_bitmap(Problem(2, 64, 600, random, true, 1.0), 2);
    for (int i = 0; i < 3; ++i)
      check_bitmap(Problem(8, 64, 700, random, false, 0.5), 3);  // one panel's blocks together
    check_bitmap(Problem(1, 100, 520, random, false, 0.02), 3);
    check_bitmap(Problem(3, 20, 300, random, false, 0.0), 1);
  });
}

TEST(block4_decode_is_exact) {
  std::mt19937 random(2);
  emulator::for_each_schedule([&] {
    for (const std::int64_t count : {1, 2, 4, 7, 18}) {
      check_block4(Problem(count, 1 + random() % 150, 1 + random() % 700, random, false, 0.2), 1 + count % 3);
    }
    check_block4(Problem(2, 64, 600, random, true, 1.0), 2);
    check_block4(Problem(3, 20, 300, random, false, 0.0), 1);
  });
}

TEST(sparse24_gemm_is_exact) {
  std::mt19937 random(3);
  emulator::for_each_schedule([&] {
    check_sparse24(sparse24(128, 128, 256, random, 1.0));
    check_sparse24(sparse24(1, 1, 1, random, 1.0));
    check_sparse24(sparse24(70, 150, 330, random, 0.3));
    check_sparse24(sparse24(130, 17, 65, random, 0.6));
  });
}

TEST(more_than_two_of_four_are_refused) {
  std::vector<std::int8_t> weights(2 * 8, 0);
  weights[12] = weights[13] = weights[15] = 1;
  std::vector<std::int8_t> values(Problem::size(cuda::sparse24_value_bytes(2, 8)));
  std::vector<std::uint32_t> places(Problem::size(cuda::sparse24_place_words(2, 8)));
  CHECK(!cuda::pack_sparse24(weights.data(), 2, 8, values.data(), places.data()));
  weights[13] = 0;
  CHECK(cuda::pack_sparse24(weights.data(), 2, 8, values.data(), places.data()));
}
