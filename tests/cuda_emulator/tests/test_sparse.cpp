// Sparse kernels on the GPU give the CPU's outputs, bit for bit.
#include "gpu_problem.h"
#include "kernels/cuda/bitmap_decode.h"
#include "kernels/cuda/block4_decode.h"
#include "kernels/cuda/expand.h"
#include "kernels/cuda/sparse24_decode.h"
#include "kernels/cuda/sparse24_gemm.h"
#include "kernels/packed.h"
#include "schedules.h"

using namespace mempool::kernels;

namespace {

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

// Panels [first, + count) made dense, of both formats, are those of the problem.
void check_expanded(const Problem& problem, const cuda::PanelRange& which) {
  const std::int64_t bytes = kPanel * padded_inputs(problem.inputs);
  const auto expected = problem.panels.begin() + which.first * bytes;
  const Device<std::int8_t> got(Problem::size(which.count * bytes));
  cuda::expand_bitmap(PackedBitmap(problem).weights(), which, got.data(), nullptr);
  CHECK(std::equal(got.data(), got.data() + got.size(), expected));
  std::fill_n(got.data(), got.size(), std::int8_t{99});
  cuda::expand_block4(PackedBlocks(problem).weights(), which, got.data(), nullptr);
  CHECK(std::equal(got.data(), got.data() + got.size(), expected));
}

// As on a device: of just their size, and aligned.
struct OnDevice {
  explicit OnDevice(const PackedSparse24& from) : values(from.values), places(from.places), weights(from.weights()) {
    weights.values = values.data();
    weights.places = places.data();
  }
  Device<std::int8_t> values;
  Device<std::uint32_t> places;
  Sparse24Weights weights;
};

void check_sparse24_decode(const Problem& problem, int splits) {
  const OnDevice packed{PackedSparse24(problem)};
  Partials partials(problem);
  check_outputs(problem, [&](const cuda::DeviceTokens& tokens, const Output& output) {
    cuda::sparse24_decode_linear(packed.weights, tokens, output, partials.get(), splits, nullptr);
  });
}

void check_sparse24_gemm(const Problem& problem, int splits = 1) {
  const OnDevice packed{PackedSparse24(problem)};
  Partials partials(problem);
  check_outputs(problem, [&](const cuda::DeviceTokens& tokens, const Output& output) {
    cuda::sparse24_gemm_linear(packed.weights, tokens, output, partials.get(), splits, nullptr);
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

TEST(expand_is_exact) {
  std::mt19937 random(5);
  emulator::for_each_schedule([&] {
    check_expanded(Problem(0, 200, 1100, random, false, 0.5), {0, 4});
    check_expanded(Problem(0, 200, 1100, random, false, 0.3), {1, 2});
    check_expanded(Problem(0, 70, 2049, random, true, 1.0), {1, 1});
    check_expanded(Problem(0, 1, 1, random, false, 1.0), {0, 1});
    check_expanded(Problem(0, 64, 257, random, false, 0.0), {0, 1});
  });
}

TEST(sparse24_decode_is_exact) {
  std::mt19937 random(3);
  emulator::for_each_schedule([&] {
    for (const std::int64_t count : {1, 2, 8, 9, 18, 37}) {
      check_sparse24_decode(two_of_four(count, 1 + random() % 150, 1 + random() % 900, random, 0.7), 1 + count % 3);
    }
    check_sparse24_decode(two_of_four(3, 64, 640, random, 1.0, true), 2);
    check_sparse24_decode(two_of_four(1, 1, 1, random, 1.0), 1);
    check_sparse24_decode(two_of_four(2, 70, 200, random, 1.0), 9);  // more blocks than there is to divide
  });
}

TEST(sparse24_gemm_is_exact) {
  std::mt19937 random(4);
  emulator::for_each_schedule([&] {
    check_sparse24_gemm(two_of_four(128, 128, 256, random, 1.0));
    check_sparse24_gemm(two_of_four(1, 1, 1, random, 1.0));
    check_sparse24_gemm(two_of_four(70, 150, 330, random, 0.3, true));
    check_sparse24_gemm(two_of_four(130, 17, 65, random, 0.6));
    check_sparse24_gemm(two_of_four(130, 20, 150, random, 1.0), 2);
    for (int i = 0; i < 3; ++i) check_sparse24_gemm(two_of_four(10, 128, 192, random, 1.0), 3);  // one tile's together
    check_sparse24_gemm(two_of_four(2, 17, 65, random, 0.6), 4);  // more blocks than there is to divide
  });
}
