// The micro-kernels of AMX: one instruction sums 16 tokens by 16 outputs over 64 inputs, exactly. Tokens and panels are
// loaded as they are: 64 bytes of a panel are 16 outputs of a group, which is a row of a tile.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "common/expects.h"
#include "kernels/cpu/sum_slice.inl"
#include "kernels/cpu/unrolled.inl"
#include "kernels/weights.h"

namespace mempool::kernels {
namespace {

inline constexpr std::int64_t kTile = 16;                    // rows, columns, or groups of inputs
inline constexpr std::int64_t kTileInputs = kTile * kGroup;  // 64

// The configuration of the tiles: 0 to 3 hold sums, 4 and 5 tokens, 6 and 7 weights. It is changed from product to
// product, and released at the end, since switching a thread with live tiles is expensive.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() { _tile_release(); }

  // Sums 0 and 1 are of `first` tokens, 2 and 3 of `second`, over `groups` groups of inputs.
  void shape(std::int64_t first, std::int64_t second, std::int64_t groups) noexcept {
    MEMPOOL_EXPECTS(first >= 1 && first <= kTile && second >= 1 && second <= kTile && groups >= 1 && groups <= kTile);
    if (is_loaded_ && first == first_ && second == second_ && groups == groups_) return;
    const Config wanted(first, second, groups);
    // Not _tile_loadconfig: g++ 12 takes it to read eight bytes, and may store the others later.
    asm volatile("ldtilecfg %0" ::"m"(wanted));
    is_loaded_ = true;
    first_ = first, second_ = second, groups_ = groups;
  }

 private:
  struct alignas(64) Config {
    Config(std::int64_t first, std::int64_t second, std::int64_t groups) {
      const auto set = [&](int tile, std::int64_t count, std::int64_t words) {
        rows[tile] = static_cast<std::uint8_t>(count);
        row_bytes[tile] = static_cast<std::uint16_t>(words * kGroup);
      };
      for (int i = 0; i < 4; ++i) set(i, i < 2 ? first : second, kTile);
      set(4, first, groups);
      set(5, second, groups);
      set(6, groups, kTile);
      set(7, groups, kTile);
    }
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  };
  static_assert(sizeof(Config) == 64);
  bool is_loaded_ = false;
  std::int64_t first_ = 0;
  std::int64_t second_ = 0;
  std::int64_t groups_ = 0;
};

struct Product {
  const std::uint8_t* tokens;
  std::int64_t token_stride;  // bytes
  const std::int8_t* weights;
  std::int64_t steps;  // of kTileInputs inputs each, or one step of fewer
  std::int32_t* sums;  // [tokens][kPanel]
  bool is_first;       // the sums begin with this product, from zero
};

// Prefetches a quarter of a step's weights, kBytesAhead further on: a tile is loaded line after line, too slowly to
// wait for memory as well.
inline constexpr std::int64_t kBytesAhead = 65536;
template <int lines>  // of each group
[[gnu::always_inline]] inline void prefetch_ahead(const std::int8_t* weights, int quarter) {
  for (int group = quarter * 4; group < quarter * 4 + 4; ++group) {
    for (int line = 0; line < lines; ++line) {
      __builtin_prefetch(weights + kBytesAhead + group * kGroupBytes + line * kVector);
    }
  }
}

// Calls add(tokens, weights) for each step, between loading and storing the sums: tiles 0 to 3, `across` of them side
// by side.
template <int across, typename Add>
[[gnu::always_inline]] inline void for_each_step(const Product& product, Add add) {
  constexpr std::int64_t kStride = kPanel * sizeof(std::int32_t);
  const auto place = [&](int tile) MEMPOOL_INLINED {
    return product.sums + tile / across * kTile * kPanel + tile % across * kTile;
  };
  asm volatile("" ::: "memory");  // to g++ loading a tile does not read memory
  if (product.is_first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, place(0), kStride);
    _tile_loadd(1, place(1), kStride);
    _tile_loadd(2, place(2), kStride);
    _tile_loadd(3, place(3), kStride);
  }
  for (std::int64_t step = 0; step < product.steps; ++step) {
    add(product.tokens + step * kTileInputs, product.weights + step * kTile * kGroupBytes);
  }
  _tile_stored(0, place(0), kStride);
  _tile_stored(1, place(1), kStride);
  _tile_stored(2, place(2), kStride);
  _tile_stored(3, place(3), kStride);
}

// Multiplies 17 to 32 tokens (Tiles::shape) with half a panel.
template <bool is_far>
[[gnu::noinline]] void tokens_32_tile(const Product& product) noexcept {
  for_each_step<2>(product, [&](const std::uint8_t* tokens, const std::int8_t* weights) MEMPOOL_INLINED {
    _tile_loadd(6, weights, kGroupBytes);
    _tile_loadd(4, tokens, product.token_stride);
    _tile_dpbusd(0, 4, 6);
    if constexpr (is_far) prefetch_ahead<2>(weights, 0);
    _tile_loadd(7, weights + kVector, kGroupBytes);
    _tile_dpbusd(1, 4, 7);
    if constexpr (is_far) prefetch_ahead<2>(weights, 1);
    _tile_loadd(5, tokens + kTile * product.token_stride, product.token_stride);
    _tile_dpbusd(2, 5, 6);
    if constexpr (is_far) prefetch_ahead<2>(weights, 2);
    _tile_dpbusd(3, 5, 7);
    if constexpr (is_far) prefetch_ahead<2>(weights, 3);
  });
}

// Multiplies up to 16 tokens with a panel.
template <bool is_far>
[[gnu::noinline]] void tokens_16_tile(const Product& product) noexcept {
  for_each_step<4>(product, [&](const std::uint8_t* tokens, const std::int8_t* weights) MEMPOOL_INLINED {
    _tile_loadd(4, tokens, product.token_stride);
    _tile_loadd(6, weights, kGroupBytes);
    _tile_dpbusd(0, 4, 6);
    if constexpr (is_far) prefetch_ahead<4>(weights, 0);
    _tile_loadd(7, weights + kVector, kGroupBytes);
    _tile_dpbusd(1, 4, 7);
    if constexpr (is_far) prefetch_ahead<4>(weights, 1);
    _tile_loadd(6, weights + 2 * kVector, kGroupBytes);
    _tile_dpbusd(2, 4, 6);
    if constexpr (is_far) prefetch_ahead<4>(weights, 2);
    _tile_loadd(7, weights + 3 * kVector, kGroupBytes);
    _tile_dpbusd(3, 4, 7);
    if constexpr (is_far) prefetch_ahead<4>(weights, 3);
  });
}

}  // namespace
}  // namespace mempool::kernels
