// Whole layers: the same outputs however the work is divided, and rows that do not disturb each other.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>

#include "kernels/linear.h"
#include "kernels/packed.h"

using namespace mempool::kernels;

namespace {

std::atomic<int> ranges{0};

void all_at_once(std::int64_t count, std::int64_t /*grain*/, Task task, const void* context) {
  task(context, 0, count);
}

// A thread for each range, as many as the grain allows, last ranges first.
void on_threads(std::int64_t count, std::int64_t grain, Task task, const void* context) {
  CHECK(count > grain);
  const std::int64_t size = std::max(grain, (count + 3) / 4);
  std::vector<std::thread> threads;
  for (std::int64_t first = (count - 1) / size * size; first >= 0; first -= size) {
    threads.emplace_back(task, context, first, std::min(count, first + size));
    ++ranges;
  }
  for (std::thread& thread : threads) thread.join();
}

struct Layer {
  Layer(std::int64_t outputs, std::int64_t inputs, std::mt19937& random)
      : problem(0, outputs, inputs, random, false, 0.4), packed_bitmap(problem), packed_blocks(problem) {}
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;
  BitmapWeights bitmap() const { return packed_bitmap.weights(); }
  BlockWeights block4() const { return packed_blocks.weights(); }

  Problem problem;
  PackedBitmap packed_bitmap;
  PackedBlocks packed_blocks;
};

template <typename Weights>
std::vector<float> multiplied(const KernelSet& set, const Weights& weights, const std::vector<float>& input,
                              const float* bias, ParallelFor parallel_for) {
  const auto count = static_cast<std::int64_t>(input.size()) / weights.inputs;
  std::vector<float> output(Problem::size(count * weights.outputs) + 1, 77.0F);
  std::vector<std::uint8_t> workspace(Problem::size(workspace_bytes(weights, count)) + 64);
  void* place = workspace.data();
  std::size_t space = workspace.size();
  place = std::align(64, space - 64, place, space);
  linear(set, weights, {input.data(), count, false}, {output.data(), bias, OutputType::float32}, place, parallel_for);
  CHECK_EQ(output.back(), 77.0F);
  output.pop_back();
  return output;
}

std::vector<float> some_input(std::int64_t size, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> input(Problem::size(size));
  for (float& value : input) value = normal(random);
  return input;
}

}  // namespace

TEST(a_layer_is_near_the_product_of_numbers) {
  std::mt19937 random(1);
  const Layer layer(70, 90, random);
  const Problem& problem = layer.problem;
  const std::vector<float> input = some_input(3 * 90, random);
  const std::vector<float> output =
      multiplied(*kernels_of(Isa::reference), problem.dense(), input, problem.bias.data(), all_at_once);
  for (std::int64_t token = 0; token < 3; ++token) {
    for (std::int64_t n = 0; n < problem.outputs; ++n) {
      double sum = 0;
      double magnitude = 0;
      for (std::int64_t k = 0; k < problem.inputs; ++k) {
        const double product = double{input[Problem::size(token * 90 + k)]} * problem.scales[Problem::size(n)] *
                               problem.weights[Problem::size(n * 90 + k)];
        sum += product;
        magnitude += std::fabs(product);
      }
      const double error = output[Problem::size(token * problem.outputs + n)] - sum - problem.bias[Problem::size(n)];
      CHECK(std::fabs(error) < 0.02 * magnitude);
    }
  }
}

TEST(outputs_do_not_depend_on_how_the_work_is_divided) {
  std::mt19937 random(2);
  const Layer layer(1500, 600, random);
  for (const std::int64_t count : {1, 70, 400}) {
    const std::vector<float> input = some_input(count * 600, random);
    for_each_set([&](const KernelSet& set) {
      const float* const bias = layer.problem.bias.data();
      const std::vector<float> dense = multiplied(set, layer.problem.dense(), input, bias, all_at_once);
      ranges = 0;
      CHECK(multiplied(set, layer.problem.dense(), input, bias, on_threads) == dense);
      CHECK(multiplied(set, layer.bitmap(), input, bias, on_threads) == dense);
      CHECK(multiplied(set, layer.block4(), input, bias, on_threads) == dense);
      CHECK(count == 1 || ranges.load() > 3);
    });
  }
}

TEST(small_work_stays_on_its_thread) {
  std::mt19937 random(3);
  const Layer layer(64, 64, random);
  const ParallelFor none = [](std::int64_t, std::int64_t, Task, const void*) { CHECK(false); };
  const std::vector<float> input = some_input(4 * 64, random);
  for_each_set([&](const KernelSet& set) { multiplied(set, layer.bitmap(), input, nullptr, none); });
}

TEST(what_is_no_number_stays_in_its_row) {
  std::mt19937 random(4);
  const Layer layer(100, 50, random);
  for_each_set([&](const KernelSet& set) {
    std::vector<float> input = some_input(4 * 50, random);
    const auto run = [&] { return multiplied(set, layer.block4(), input, nullptr, all_at_once); };
    const std::vector<float> before = run();
    input[60] = std::numeric_limits<float>::quiet_NaN();
    input[170] = -std::numeric_limits<float>::infinity();
    const std::vector<float> after = run();
    for (std::size_t i = 0; i < after.size(); ++i) {
      const bool is_spoilt = i / 100 == 1 || i / 100 == 3;
      CHECK(is_spoilt ? std::isnan(after[i]) : after[i] == before[i]);
    }
  });
}
