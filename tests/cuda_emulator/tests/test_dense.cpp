// Dense kernels on the GPU give the CPU's outputs, bit for bit.
#include "gpu_problem.h"
#include "kernels/cuda/dense_decode.h"
#include "kernels/cuda/dense_gemm.h"
#include "schedules.h"

using namespace mempool::kernels;

namespace {

void check_decode(const Problem& problem, int splits) {
  const Device<std::int8_t> panels(problem.panels);
  DenseWeights weights = problem.dense();
  weights.panels = panels.data();
  Partials partials(problem);
  check_outputs(problem, [&](const cuda::DeviceTokens& tokens, const Output& output) {
    cuda::dense_decode_linear(weights, tokens, output, partials.get(), splits, nullptr);
  });
}

void check_gemm(const Problem& problem) {
  const Device<std::int8_t> panels(problem.panels);
  DenseWeights weights = problem.dense();
  weights.panels = panels.data();
  check_outputs(problem, [&](const cuda::DeviceTokens& tokens, const Output& output) {
    cuda::dense_gemm_linear(weights, tokens, output, nullptr);
  });
}

}  // namespace

TEST(dense_decode_is_exact) {
  std::mt19937 random(1);
  emulator::for_each_schedule([&] {
    for (const std::int64_t count : {1, 2, 3, 5, 9, 16, 33}) {
      check_decode(Problem(count, 1 + random() % 150, 1 + random() % 400, random, false), 1 + count % 3);
    }
    check_decode(Problem(4, 64, 1024, random, true), 4);
    check_decode(Problem(1, 65, 700, random, false), 60);  // more blocks than there is to divide
  });
}

TEST(dense_gemm_is_exact) {
  std::mt19937 random(2);
  emulator::for_each_schedule([&] {
    check_gemm(Problem(128, 128, 256, random, false));
    check_gemm(Problem(1, 1, 1, random, false));
    check_gemm(Problem(130, 67, 129, random, false));
    check_gemm(Problem(17, 200, 530, random, true));
  });
}
