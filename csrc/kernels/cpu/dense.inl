// The GEMV and small GEMM of a dense weight, for any vector unit (sum_slice.inl says what a unit is).
#pragma once

#include <cstdint>

#include "kernels/cpu/finish.inl"
#include "kernels/cpu/sum_slice.inl"
#include "kernels/formats/dense.h"

namespace mempool::kernels {
namespace {

template <typename Unit, int rows>
[[gnu::noinline]] void dense_tile(const DenseWeights& weights, const Tokens& tokens, const Output& out,
                                  std::int64_t panel, std::int64_t token) noexcept {
  constexpr int kSlice = Unit::kLanes * Unit::kVectors;  // outputs
  const std::int64_t groups = groups_of(weights.inputs);
  const std::int64_t stride = token_stride(weights.inputs);
  for (std::int64_t slice = 0; slice < kPanel; slice += kSlice) {
    const std::int64_t output = panel * kPanel + slice;
    const std::int64_t left = weights.outputs - output;
    if (left <= 0) return;
    const std::int8_t* const from = weights.panels + (panel * groups * kPanel + slice) * kGroup;
    alignas(64) std::int32_t sums[rows * kSlice];
    Unit::template sum<rows, true>(from, tokens.values + token * stride, stride, groups, sums);
    for (int row = 0; row < rows; ++row) {
      finish_row<Unit::kTokenZero>(weights, tokens, out, token + row, output, left < kSlice ? left : kSlice,
                                   sums + row * kSlice);
    }
  }
}

template <typename Unit>
void dense(const DenseWeights& weights, const Tokens& tokens, const Output& out, std::int64_t first,
           std::int64_t last) noexcept {
  for (std::int64_t panel = first; panel < last; ++panel) {
    in_rows<Unit>(tokens.count, [&](auto rows, std::int64_t token)
                                    MEMPOOL_INLINED { dense_tile<Unit, rows>(weights, tokens, out, panel, token); });
  }
}

}  // namespace
}  // namespace mempool::kernels
