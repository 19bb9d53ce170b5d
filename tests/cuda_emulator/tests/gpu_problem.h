// A multiplication (kernels/problem.h) as the GPU's kernels take it.
#pragma once

#include <memory>

#include "emulator.h"
#include "kernels/cuda/arguments.h"
#include "kernels/problem.h"

namespace mempool::kernels {

// Memory of just that size, aligned as a device's is, so that sanitizers watch both ends.
template <typename Value>
class Device {
 public:
  explicit Device(std::size_t count) : size_(count), at_(new(std::align_val_t{64}) Value[count + (count == 0)]) {
    std::memset(static_cast<void*>(at_.get()), 0xA5, count * sizeof(Value));  // as memory of a GPU comes
  }
  explicit Device(const std::vector<Value>& from) : Device(from.size()) {
    std::copy(from.begin(), from.end(), at_.get());
  }
  Value* data() const { return at_.get(); }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(Value* at) const { ::operator delete[](at, std::align_val_t{64}); }
  };
  std::size_t size_;
  std::unique_ptr<Value[], Free> at_;
};

// The tokens of a problem, signed and with the GPU's stride.
inline Device<std::int8_t> signed_tokens(const Problem& problem) {
  const int stride = cuda::token_bytes(static_cast<int>(problem.inputs));
  Device<std::int8_t> tokens(Problem::size(problem.count * stride));
  std::fill_n(tokens.data(), tokens.size(), std::int8_t{0});
  for (std::int64_t token = 0; token < problem.count; ++token) {
    for (std::int64_t i = 0; i < problem.inputs; ++i) {
      tokens.data()[token * stride + i] =
          static_cast<std::int8_t>(problem.values[Problem::size(token * token_stride(problem.inputs) + i)] - kZero);
    }
  }
  return tokens;
}

struct Partials {
  Partials(const Problem& problem)
      : sums(Problem::size(problem.count * panels_of(problem.outputs) * kPanel)),
        arrived(Problem::size(panels_of(problem.outputs) * problem.count)) {}
  // All zero, as kernels ask for it.
  cuda::Partial get() {
    std::fill_n(sums.data(), sums.size(), 0);
    std::fill_n(arrived.data(), arrived.size(), 0U);
    return {sums.data(), arrived.data()};
  }
  Device<std::int32_t> sums;
  Device<unsigned> arrived;
};

// What the CPU's reference makes of the same problem: every type, with and without bias, to the bit.
template <typename Run>
void check_outputs(const Problem& problem, Run run) {
  const Device<std::int8_t> values = signed_tokens(problem);
  const Device<float> scales(problem.token_scales);
  const cuda::DeviceTokens tokens = {values.data(), scales.data(), static_cast<int>(problem.count)};
  const std::size_t size = Problem::size(problem.count * problem.outputs);
  const KernelSet& reference = *kernels_of(Isa::reference);
  const auto check = [&](OutputType type, const float* bias) {
    const std::size_t bytes = size * (type == OutputType::bfloat16 ? 2 : 4);
    Device<std::uint32_t> got((bytes + 3) / 4);
    std::vector<std::uint32_t> expected(got.data(), got.data() + got.size());
    run(tokens, Output{got.data(), bias, type});
    reference.dense(problem.dense(), problem.tokens(), Output{expected.data(), bias, type}, 0,
                    panels_of(problem.outputs));
    CHECK(std::equal(expected.begin(), expected.end(), got.data()));
    if (type != OutputType::accumulators) return;
    const auto* const sums = reinterpret_cast<const std::int32_t*>(got.data());
    problem.check_sums(std::vector<std::int32_t>(sums, sums + size));
  };
  check(OutputType::accumulators, nullptr);
  check(OutputType::float32, nullptr);
  check(OutputType::float32, problem.bias.data());
  check(OutputType::bfloat16, problem.bias.data());
}

}  // namespace mempool::kernels
