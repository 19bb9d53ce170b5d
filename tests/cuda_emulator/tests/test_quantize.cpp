// Tokens quantized on the GPU are those of the CPU, bit for bit.
#include <cmath>
#include <cstring>
#include <limits>

#include "gpu_problem.h"
#include "kernels/cuda/quantize.h"
#include "schedules.h"

using namespace mempool::kernels;

namespace {

template <typename Value, typename Quantize>
void check_tokens(const std::vector<Value>& rows, std::int64_t inputs, std::int64_t misaligned, Quantize on_cpu,
                  void (*on_gpu)(const Value*, int, int, std::int8_t*, float*, cudaStream_t)) {
  const std::int64_t count = static_cast<std::int64_t>(rows.size()) / inputs;
  std::vector<std::uint8_t> values(Problem::size(count * token_stride(inputs)));
  std::vector<float> scales(Problem::size(count));
  on_cpu(rows.data(), inputs, 0, count, values.data(), scales.data());
  const int stride = cuda::token_bytes(static_cast<int>(inputs));
  Device<Value> from(rows.size() + Problem::size(misaligned));
  std::copy(rows.begin(), rows.end(), from.data() + misaligned);
  Device<std::int8_t> got(Problem::size(count * stride));
  Device<float> got_scales(Problem::size(count));
  std::memset(got.data(), 9, got.size());
  on_gpu(from.data() + misaligned, static_cast<int>(count), static_cast<int>(inputs), got.data(), got_scales.data(),
         nullptr);
  for (std::int64_t token = 0; token < count; ++token) {
    const float expected = scales[Problem::size(token)];
    const float scale = got_scales.data()[token];
    CHECK(std::isnan(expected) ? std::isnan(scale) : expected == scale);
    for (std::int64_t i = 0; i < stride; ++i) {
      const int q = i < inputs ? values[Problem::size(token * token_stride(inputs) + i)] - kZero : 0;
      CHECK_EQ(int{got.data()[token * stride + i]}, q);
    }
  }
}

}  // namespace

TEST(quantize_is_exact) {
  std::mt19937 random(1);
  const KernelSet& reference = *kernels_of(Isa::reference);
  emulator::for_each_schedule([&] {
    for (const std::int64_t inputs : {1, 3, 16, 130, 1024, 2100}) {
      const std::vector<float> rows = awkward_rows(7, inputs, random);
      std::vector<std::uint16_t> halves(rows.size());
      for (std::size_t i = 0; i < rows.size(); ++i) {
        std::uint32_t bits = 0;
        std::memcpy(&bits, &rows[i], sizeof(bits));
        halves[i] = static_cast<std::uint16_t>(bits >> 16);
      }
      for (const std::int64_t misaligned : {0, 1}) {
        check_tokens(rows, inputs, misaligned, reference.quantize_float32, cuda::quantize_float32);
        check_tokens(halves, inputs, misaligned, reference.quantize_bfloat16, cuda::quantize_bfloat16);
      }
    }
  });
}
