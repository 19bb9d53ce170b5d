// The GEMM of a bitmap weight: a chunk of a panel is expanded to dense, which fits the first-level cache, and
// multiplied with a block of tokens. For few tokens avx512_vnni.cpp expands in registers instead.
//
// Beside what sum_slice.inl asks of it, a unit has
//   // Expands `vectors` vectors to `to`; returns the first value behind them.
//   static const std::int8_t* expand(const std::uint64_t* masks, const std::int8_t* values, std::int64_t vectors,
//                                    std::int8_t* to);
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/finish.inl"
#include "kernels/cpu/sum_slice.inl"
#include "kernels/formats/bitmap.h"

namespace mempool::kernels {
namespace {

// The most tokens for which a chunk is expanded once: chunk and sums, 112 KiB together, stay in the second-level cache.
inline constexpr std::int64_t kMostTokens = 192;

inline const std::int8_t* expand_plainly(const std::uint64_t* masks, const std::int8_t* values, std::int64_t vectors,
                                         std::int8_t* to) noexcept {
  std::memset(to, 0, static_cast<std::size_t>(vectors * kVector));
  for (std::int64_t vector = 0; vector < vectors; ++vector) {
    for (std::uint64_t mask = masks[vector]; mask != 0; mask &= mask - 1) {
      to[vector * kVector + __builtin_ctzll(mask)] = *values++;
    }
  }
  return values;
}

// Sums one slice of a panel over a chunk. It is a function of its own for the test that reads its disassembly.
template <typename Unit, int rows>
[[gnu::noinline]] void chunk_tile(const std::int8_t* weights, const std::uint8_t* input, std::int64_t stride,
                                  std::int64_t groups, std::int32_t* out) noexcept {
  Unit::template sum<rows, false>(weights, input, stride, groups, out);
}

template <typename Unit>
void bitmap_block(const BitmapWeights& weights, const Tokens& tokens, const Output& out, std::int64_t panel,
                  std::int64_t first, std::int64_t count) noexcept {
  constexpr std::int64_t kChunk = 256;  // groups: 64 KiB
  constexpr int kSlice = Unit::kLanes * Unit::kVectors;
  const std::int64_t groups = groups_of(weights.inputs);
  const std::int64_t stride = token_stride(weights.inputs);
  const std::uint64_t* masks = weights.masks + panel * groups * kVectorsOfPanel;
  const std::int8_t* values = weights.values + weights.offsets[panel] * kVector;
  alignas(64) std::int8_t chunk[kChunk * kGroupBytes];
  alignas(64) std::int32_t sums[kMostTokens * kPanel];
  std::memset(sums, 0, static_cast<std::size_t>(count * kPanel) * sizeof(sums[0]));
  for (std::int64_t group = 0; group < groups; group += kChunk) {
    const std::int64_t here = groups - group < kChunk ? groups - group : kChunk;
    values = Unit::expand(masks + group * kVectorsOfPanel, values, here * kVectorsOfPanel, chunk);
    const std::uint8_t* const input = tokens.values + first * stride + group * kGroup;
    in_rows<Unit>(count, [&](auto rows, std::int64_t token) MEMPOOL_INLINED {
      for (std::int64_t slice = 0; slice < kPanel; slice += kSlice) {
        alignas(64) std::int32_t tile[rows * kSlice];
        chunk_tile<Unit, rows>(chunk + slice * kGroup, input + token * stride, stride, here, tile);
        for (int row = 0; row < rows; ++row) {
          std::int32_t* const to = sums + (token + row) * kPanel + slice;
          for (int i = 0; i < kSlice; ++i) to[i] += tile[row * kSlice + i];
        }
      }
    });
  }
  const std::int64_t left = weights.outputs - panel * kPanel;
  for (std::int64_t token = 0; token < count; ++token) {
    finish_row<Unit::kTokenZero>(weights, tokens, out, first + token, panel * kPanel, left < kPanel ? left : kPanel,
                                 sums + token * kPanel);
  }
}

template <typename Unit>
void bitmap(const BitmapWeights& weights, const Tokens& tokens, const Output& out, std::int64_t first,
            std::int64_t last) noexcept {
  for (std::int64_t panel = first; panel < last; ++panel) {
    for (std::int64_t token = 0; token < tokens.count; token += kMostTokens) {
      const std::int64_t left = tokens.count - token;
      bitmap_block<Unit>(weights, tokens, out, panel, token, left < kMostTokens ? left : kMostTokens);
    }
  }
}

}  // namespace
}  // namespace mempool::kernels
