// The kernels for AMX, which multiplies whole tiles: for many tokens. A chunk of a panel (of a dense weight as it is,
// of a sparse one expanded) stays in the first-level cache while all tokens of a task are multiplied with it. Few
// tokens are bound by memory, and go to the kernels of avx512_vnni.cpp.
#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/bitmap.inl"
#include "kernels/cpu/block4.inl"
#include "kernels/cpu/finish.inl"
#include "kernels/cpu/quantize.inl"
#include "kernels/cpu/sets.h"
#include "kernels/cpu/tiles.inl"
#include "kernels/cpu/vbmi2.inl"
#include "kernels/weights.h"

namespace mempool::kernels {
namespace {

constexpr std::int64_t kChunk = 256;  // groups: 64 KiB
static_assert(kChunk % kTile == 0);

// Calls action(group, count) for chunks of whole tiles, then for the rest, which is less than a tile.
template <typename Action>
void in_chunks(std::int64_t groups, Action action) {
  const std::int64_t whole = groups / kTile * kTile;
  for (std::int64_t group = 0; group < whole; group += kChunk) {
    action(group, whole - group < kChunk ? whole - group : kChunk);
  }
  if (whole < groups) action(whole, groups - whole);
}

std::int64_t steps_of(std::int64_t groups) { return groups < kTile ? 1 : groups / kTile; }
std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Adds the products of a chunk of `groups` groups to `sums`. `is_far`: the chunk lies in memory, and is prefetched.
template <bool is_far>
void add_chunk(Tiles& tiles, const std::int8_t* chunk, std::int64_t groups, const std::uint8_t* tokens,
               std::int64_t stride, std::int64_t count, bool is_first, std::int32_t* sums) noexcept {
  for (std::int64_t token = 0; token < count; token += 2 * kTile) {
    const std::int64_t rows = least(2 * kTile, count - token);
    Product product = {tokens + token * stride, stride, chunk, steps_of(groups), sums + token * kPanel, is_first};
    const bool prefetches = is_far && token == 0;
    if (rows <= kTile) {
      tiles.shape(rows, rows, least(groups, kTile));
      prefetches ? tokens_16_tile<is_far>(product) : tokens_16_tile<false>(product);
      continue;
    }
    tiles.shape(kTile, rows - kTile, least(groups, kTile));
    for (int half = 0; half < 2; ++half) {
      prefetches ? tokens_32_tile<is_far>(product) : tokens_32_tile<false>(product);
      product.weights += kGroupBytes / 2;
      product.sums += kPanel / 2;
    }
  }
}

// The chunks of a dense panel, which are multiplied where they lie.
struct InPlace {
  static constexpr bool kIsFar = true;
  const std::int8_t* panel;
  const std::int8_t* chunk(std::int64_t group, std::int64_t /*count*/) { return panel + group * kGroupBytes; }
};

// The chunks of a bitmap's panel, expanded one after the other.
struct Expanded {
  static constexpr bool kIsFar = false;
  const std::uint64_t* masks;
  const std::int8_t* values;
  alignas(64) std::int8_t dense[kChunk * kGroupBytes];

  const std::int8_t* chunk(std::int64_t group, std::int64_t count) {
    values = expand_vectors(masks + group * kVectorsOfPanel, values, count * kVectorsOfPanel, dense);
    return dense;
  }
};

template <typename Source, typename PackedWeights>
void multiply(Source& source, const PackedWeights& weights, const Tokens& tokens, const Output& out, std::int64_t panel,
              std::int64_t first, std::int64_t count) noexcept {
  alignas(64) std::int32_t sums[kMostTokens * kPanel];
  const std::int64_t stride = token_stride(weights.inputs);
  const std::uint8_t* const values = tokens.values + first * stride;
  {
    Tiles tiles;
    in_chunks(groups_of(weights.inputs), [&](std::int64_t group, std::int64_t groups) {
      add_chunk<Source::kIsFar>(tiles, source.chunk(group, groups), groups, values + group * kGroup, stride, count,
                                group == 0, sums);
    });
  }
  const std::int64_t left = least(kPanel, weights.outputs - panel * kPanel);
  for (std::int64_t token = 0; token < count; ++token) {
    finish_row(weights, tokens, out, first + token, panel * kPanel, left, sums + token * kPanel);
  }
}

template <typename Action>
void in_blocks(std::int64_t first, std::int64_t last, std::int64_t tokens, Action action) {
  for (std::int64_t panel = first; panel < last; ++panel) {
    for (std::int64_t token = 0; token < tokens; token += kMostTokens) {
      action(panel, token, least(kMostTokens, tokens - token));
    }
  }
}

constexpr std::int64_t kFewForDense = 6;
constexpr std::int64_t kFewForBitmap = 12;

void dense_by_tiles(const DenseWeights& weights, const Tokens& tokens, const Output& out, std::int64_t first,
                    std::int64_t last) noexcept {
  if (tokens.count <= kFewForDense) return kAvx512VnniKernels.dense(weights, tokens, out, first, last);
  const std::int64_t bytes = groups_of(weights.inputs) * kGroupBytes;
  in_blocks(first, last, tokens.count, [&](std::int64_t panel, std::int64_t token, std::int64_t count) {
    InPlace source{weights.panels + panel * bytes};
    multiply(source, weights, tokens, out, panel, token, count);
  });
}

void bitmap_by_tiles(const BitmapWeights& weights, const Tokens& tokens, const Output& out, std::int64_t first,
                     std::int64_t last) noexcept {
  if (tokens.count <= kFewForBitmap) return kAvx512VnniKernels.bitmap(weights, tokens, out, first, last);
  in_blocks(first, last, tokens.count, [&](std::int64_t panel, std::int64_t token, std::int64_t count) {
    Expanded source;
    source.masks = weights.masks + panel * groups_of(weights.inputs) * kVectorsOfPanel;
    source.values = weights.values + weights.offsets[panel] * kVector;
    multiply(source, weights, tokens, out, panel, token, count);
  });
}

// Vectors skip blocks of zeros, which tiles would multiply.
void block4_by_vectors(const BlockWeights& weights, const Tokens& tokens, const Output& out, std::int64_t first,
                       std::int64_t last) noexcept {
  kAvx512VnniKernels.block4(weights, tokens, out, first, last);
}

}  // namespace

const KernelSet kAvx512AmxKernels = {&quantize<float>, &quantize<std::uint16_t>, &dense_by_tiles, &bitmap_by_tiles,
                                     &interleave,      &block4_by_vectors};

}  // namespace mempool::kernels
