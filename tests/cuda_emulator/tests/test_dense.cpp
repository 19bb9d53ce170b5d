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

// `at_once`: the number of panels that a launch multiplies.
void check_gemm(const Problem& problem, int splits = 1, int at_once = 1000) {
  const int panels = static_cast<int>(panels_of(problem.outputs));
  Partials partials(problem);
  check_outputs(problem, [&](const cuda::DeviceTokens& tokens, const Output& output) {
    for (int first = 0; first < panels; first += at_once) {
      const int count = std::min(at_once, panels - first);
      const std::int64_t bytes = kPanel * padded_inputs(problem.inputs);
      const auto from = problem.panels.begin() + first * bytes;
      const Device<std::int8_t> held(std::vector<std::int8_t>(from, from + count * bytes));
      DenseWeights weights = problem.dense();
      weights.panels = held.data();
      cuda::dense_gemm_linear(weights, {first, count}, tokens, output, partials.get(), splits, nullptr);
    }
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
    check_gemm(Problem(17, 130, 400, random, true));
    check_gemm(Problem(20, 100, 330, random, true), 3);
    check_gemm(Problem(20, 140, 130, random, false), 2, 2);  // panels two by two
    check_gemm(Problem(3, 5, 70, random, false), 5);         // more blocks than there is to divide
  });
}
