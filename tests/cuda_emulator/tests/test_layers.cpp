// Whole layers on the GPU: the CPU's outputs for every kernel that the table chooses.
#include <limits>
#include <memory>

#include "gpu_problem.h"
#include "kernels/cuda/linear.h"
#include "kernels/packed.h"
#include "schedules.h"

using namespace mempool::kernels;

namespace {

void on_one_thread(std::int64_t count, std::int64_t /*grain*/, Task task, const void* context) {
  task(context, 0, count);
}

// What a layer makes of `rows` on the CPU, and on the GPU in a workspace that was used before.
struct Layer {
  Layer(std::int64_t count_in, std::int64_t outputs, std::int64_t inputs, double density, std::mt19937& random)
      : count(count_in),
        any(random),
        problem(0, outputs, inputs, random, false, density),
        rows(Problem::size(count * inputs)) {
    std::uniform_real_distribution<float> activation(-1.0F, 1.0F);
    for (float& value : rows) value = activation(random);
    if (count > 1) rows[1] = std::numeric_limits<float>::quiet_NaN();
  }

  std::vector<std::uint32_t> on_cpu() const {
    std::vector<std::uint32_t> out(Problem::size(count * problem.outputs));
    std::vector<char> scratch(Problem::size(workspace_bytes(problem.dense(), count)) + 64);
    void* aligned = scratch.data();
    std::size_t space = scratch.size();
    std::align(64, 1, aligned, space);
    linear(*kernels_of(Isa::reference), problem.dense(), {rows.data(), count, false},
           {out.data(), problem.bias.data(), OutputType::float32}, aligned, on_one_thread);
    return out;
  }

  template <typename Weights>
  void check(cuda::Format format, const Weights& weights, int processors) const {
    const std::vector<std::uint32_t> expected = on_cpu();
    const Device<float> input(rows);
    const Device<char> workspace(
        Problem::size(cuda::workspace_bytes(format, problem.outputs, problem.inputs, count, processors)));
    for (int time = 0; time < 2; ++time) {
      Device<std::uint32_t> got(expected.size());
      CHECK_EQ(
          cuda::linear(weights, {input.data(), count, false}, {got.data(), problem.bias.data(), OutputType::float32},
                       workspace.data(), processors, nullptr),
          0);
      CHECK(std::equal(expected.begin(), expected.end(), got.data()));
    }
  }

  void check_dense(int processors) const { check(cuda::Format::dense, problem.dense(), processors); }
  void check_bitmap(int processors) const { check(cuda::Format::bitmap, PackedBitmap(problem).weights(), processors); }
  void check_block4(int processors) const { check(cuda::Format::block4, PackedBlocks(problem).weights(), processors); }

  void check_sparse24(int processors) {
    problem = two_of_four(0, problem.outputs, problem.inputs, any, 0.9);
    check(cuda::Format::sparse24, PackedSparse24(problem).weights(), processors);
  }

  std::int64_t count;
  std::mt19937& any;
  Problem problem;
  std::vector<float> rows;
};

}  // namespace

TEST(layers_are_those_of_the_cpu) {
  std::mt19937 random(1);
  emulator::for_each_schedule([&] {
    Layer(1, 130, 2050, 1.0, random).check_dense(4);  // inputs are divided
    Layer(3, 64, 100, 1.0, random).check_dense(1);
    Layer(17, 70, 140, 1.0, random).check_dense(108);  // a GEMM
    Layer(20, 70, 1030, 1.0, random).check_dense(1);   // and with inputs divided
    Layer(2, 70, 1540, 0.5, random).check_bitmap(4);
    Layer(18, 70, 1540, 0.2, random).check_block4(4);
    Layer(33, 270, 70, 0.5, random).check_bitmap(1);  // a GEMM of some panels after the others
    Layer(33, 270, 70, 0.2, random).check_block4(1);
    Layer(33, 70, 1030, 0.5, random).check_bitmap(1);  // of all at once, inputs divided
    Layer(5, 70, 1540, 1.0, random).check_sparse24(4);
    Layer(65, 70, 1030, 1.0, random).check_sparse24(1);
  });
}

TEST(the_table_covers_every_format_and_number_of_tokens) {
  using cuda::Format;
  const auto check = [](Format format, std::int64_t few) {
    CHECK(cuda::kernel_for(format, 1) == cuda::Kernel::decode);
    CHECK(cuda::kernel_for(format, few) == cuda::Kernel::decode);
    CHECK(cuda::kernel_for(format, few + 1) == cuda::Kernel::gemm);
    CHECK(cuda::kernel_for(format, cuda::kMostTokens) == cuda::Kernel::gemm);
    for (const std::int64_t tokens : {std::int64_t{1}, few}) {
      const int splits = cuda::splits_for(format, 4096, 4096, tokens, 108);
      CHECK(splits >= 1 && splits <= 8);
    }
  };
  check(Format::dense, 16);
  check(Format::bitmap, 32);
  check(Format::block4, 32);
  check(Format::sparse24, 64);
  CHECK_EQ(cuda::splits_for(Format::dense, 64, 65536, 1, 132), 64);
  CHECK_EQ(cuda::splits_for(Format::dense, 64, 100, 1, 132), 1);
  CHECK_EQ(cuda::splits_for(Format::dense, 1 << 20, 4096, 1, 132), 1);
  CHECK_EQ(cuda::gemm_splits_for(64, 4096, 128, 108), 6);  // 32 tiles, and room for 216
  CHECK_EQ(cuda::gemm_splits_for(64, 1024, 128, 108), 2);
  CHECK_EQ(cuda::gemm_splits_for(64, 4096, 2048, 108), 1);
  CHECK_EQ(cuda::gemm_splits_for(1, 65536, 1, 108), 32);
  CHECK_EQ(cuda::gemm_splits_for(0, 1, 1, 108), 1);
}

TEST(as_many_panels_are_dense_at_once_as_fill_a_gpu) {
  const auto bytes = [](std::int64_t outputs, std::int64_t inputs, std::int64_t tokens) {
    const int panels = cuda::panels_at_once(outputs, inputs, tokens, 108);
    CHECK(panels >= 2 && panels % 2 == 0);
    return panels * kPanel * inputs;
  };
  CHECK_EQ(bytes(4096, 4096, 128), 4096 * 4096);      // all of it
  CHECK_EQ(bytes(4096, 4096, 2048), 22 * 64 * 4096);  // 11 times 16 blocks of the GEMM
  CHECK(bytes(1 << 20, 4096, 65) <= 32 << 20);
  CHECK(bytes(1 << 20, 65536, 65) <= 32 << 20);
  CHECK_EQ(bytes(1, 1, cuda::kMostTokens), 128);
}
