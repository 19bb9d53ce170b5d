// Whole layers on the GPU: the CPU's outputs for every kernel that the table chooses.
#include "gpu_problem.h"
#include "kernels/cuda/linear.h"
#include "schedules.h"

using namespace mempool::kernels;

namespace {

void on_one_thread(std::int64_t count, std::int64_t /*grain*/, Task task, const void* context) {
  task(context, 0, count);
}

void check_layer(std::int64_t count, std::int64_t outputs, std::int64_t inputs, int processors, std::mt19937& random) {
  const Problem problem(0, outputs, inputs, random, false);
  std::uniform_real_distribution<float> any(-1.0F, 1.0F);
  std::vector<float> rows(Problem::size(count * inputs));
  for (float& value : rows) value = any(random);
  const std::size_t size = Problem::size(count * outputs);
  std::vector<float> expected(size);
  std::vector<char> scratch(Problem::size(workspace_bytes(problem.dense(), count)) + 64);
  void* aligned = scratch.data();
  std::size_t space = scratch.size();
  std::align(64, 1, aligned, space);
  linear(*kernels_of(Isa::reference), problem.dense(), {rows.data(), count, false},
         {expected.data(), problem.bias.data(), OutputType::float32}, aligned, on_one_thread);
  const Device<std::int8_t> panels(problem.panels);
  const Device<float> input(rows);
  DenseWeights weights = problem.dense();
  weights.panels = panels.data();
  const Device<char> workspace(
      Problem::size(cuda::workspace_bytes(cuda::Format::dense, outputs, inputs, count, processors)));
  Device<float> got(size);
  CHECK_EQ(cuda::linear(weights, {input.data(), count, false}, {got.data(), problem.bias.data(), OutputType::float32},
                        workspace.data(), processors, nullptr),
           0);
  CHECK(std::equal(expected.begin(), expected.end(), got.data()));
}

}  // namespace

TEST(layers_are_those_of_the_cpu) {
  std::mt19937 random(1);
  emulator::for_each_schedule([&] {
    check_layer(1, 130, 2050, 4, random);  // inputs are divided
    check_layer(3, 64, 100, 1, random);
    check_layer(65, 70, 140, 108, random);  // a GEMM
  });
}

TEST(the_table_covers_every_format_and_number_of_tokens) {
  using cuda::Format;
  for (const Format format : {Format::dense, Format::bitmap, Format::block4, Format::sparse24}) {
    for (const std::int64_t tokens : {std::int64_t{1}, std::int64_t{64}, std::int64_t{65}, cuda::kMostTokens}) {
      const bool is_gemm = format == Format::sparse24 || (format == Format::dense && tokens > 64);
      CHECK(cuda::kernel_for(format, tokens) == (is_gemm ? cuda::Kernel::gemm : cuda::Kernel::decode));
      const int splits = cuda::splits_for(format, 4096, 4096, tokens, 108);
      CHECK(splits >= 1 && splits <= 8);
    }
  }
  CHECK_EQ(cuda::splits_for(Format::dense, 64, 65536, 1, 132), 64);
  CHECK_EQ(cuda::splits_for(Format::dense, 64, 100, 1, 132), 1);
  CHECK_EQ(cuda::splits_for(Format::dense, 1 << 20, 4096, 1, 132), 1);
}
