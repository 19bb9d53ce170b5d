// The kernels for AVX-512 with VNNI and VBMI2. One instruction of VNNI adds four exact products for each of 16 outputs;
// one of VBMI2 expands 64 sparse weights by their mask.
#include <immintrin.h>

#include "kernels/cpu/bitmap.inl"
#include "kernels/cpu/block4.inl"
#include "kernels/cpu/dense.inl"
#include "kernels/cpu/quantize.inl"
#include "kernels/cpu/sets.h"
#include "kernels/cpu/vbmi2.inl"

namespace mempool::kernels {
namespace {

alignas(64) constexpr std::uint16_t kPlaces[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                   16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

template <int vectors, int rows>
struct Vnni : GroupByGroup<Vnni<vectors, rows>> {
  static constexpr int kLanes = 16;
  static constexpr int kVectors = vectors;
  static constexpr int kRows = rows;
  static constexpr int kChains = 8;
  using Sum = __m512i;
  using Weights = __m512i;
  using Inputs = __m512i;
  static Sum zero() { return _mm512_setzero_si512(); }
  static Weights load(const std::int8_t* from) { return _mm512_loadu_si512(from); }
  static Inputs broadcast(const std::uint8_t* from) {
    std::int32_t group = 0;
    std::memcpy(&group, from, sizeof(group));
    return _mm512_set1_epi32(group);
  }
  static Sum load_sum(const std::int32_t* from) { return _mm512_load_si512(from); }
  static Sum add(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
  static Inputs load_tokens(const std::uint8_t* from) { return _mm512_loadu_si512(from); }
  static Weights broadcast_block(const std::int8_t* from) {
    std::int32_t block = 0;
    std::memcpy(&block, from, sizeof(block));
    return _mm512_set1_epi32(block);
  }
  static Sum dot(Sum sum, Inputs inputs, Weights weights) { return _mm512_dpbusd_epi32(sum, inputs, weights); }
  static void store(std::int32_t* to, Sum sum) { _mm512_store_si512(to, sum); }
  static const std::int8_t* expand(const std::uint64_t* masks, const std::int8_t* values, std::int64_t count,
                                   std::int8_t* to) {
    return expand_vectors(masks, values, count, to);
  }
  static std::int64_t list_groups(const std::uint64_t* masks, std::int64_t words, std::uint16_t* groups) {
    std::uint16_t* to = groups;
    __m512i places = _mm512_loadu_si512(kPlaces);
    for (std::int64_t half = 0; half < 2 * words; ++half) {
      const auto mask = static_cast<__mmask32>(masks[half / 2] >> half % 2 * 32);
      _mm512_storeu_si512(to, _mm512_maskz_compress_epi16(mask, places));
      to += _mm_popcnt_u32(mask);
      places = _mm512_add_epi16(places, _mm512_set1_epi16(32));
    }
    return to - groups;
  }
};

// Tiles of 24 registers of sums; the other 8 hold weights and inputs.
using Wide = Vnni<4, 6>;
using Narrow = Vnni<2, 12>;

// A bitmap's weights, expanded in registers: `Unit::kVectors` vectors of each group, from vector `first` on.
template <typename Unit, int first>
struct BitmapSource {
  // The prefetch distance in bytes. The hardware does not prefetch where addresses depend on data; half of a group is
  // two cache lines.
  static constexpr int kAhead = 4096;
  const std::uint64_t* masks;
  const std::int8_t* values;

  [[gnu::always_inline]] void next(__m512i (&loaded)[Unit::kVectors]) {
    __builtin_prefetch(values + kAhead);
    __builtin_prefetch(values + kAhead + kVector);
    __builtin_prefetch(masks + kAhead / sizeof(*masks));
    unrolled<kVectorsOfPanel>([&](auto vector) MEMPOOL_INLINED {
      const std::uint64_t mask = masks[vector];
      if constexpr (vector >= first && vector < first + Unit::kVectors) {
        loaded[vector - first] = expand_vector(mask, values);
      }
      values += _mm_popcnt_u64(mask);
    });
    masks += kVectorsOfPanel;
  }
};

template <typename Unit, int rows>
[[gnu::noinline]] void bitmap_tile(const BitmapWeights& weights, const Tokens& tokens, const Output& out,
                                   std::int64_t panel) noexcept {
  const std::int64_t groups = groups_of(weights.inputs);
  const std::int64_t stride = token_stride(weights.inputs);
  const std::uint64_t* const masks = weights.masks + panel * groups * kVectorsOfPanel;
  const std::int8_t* const values = weights.values + weights.offsets[panel] * kVector;
  alignas(64) std::int32_t sums[rows * kPanel];
  unrolled<kVectorsOfPanel / Unit::kVectors>([&](auto part) MEMPOOL_INLINED {
    constexpr int kFirst = part * Unit::kVectors;
    const BitmapSource<Unit, kFirst> source{masks, values};
    sum_slice<Unit, rows>(source, tokens.values, stride, groups, sums + kFirst * Unit::kLanes, kPanel);
  });
  const std::int64_t left = weights.outputs - panel * kPanel;
  for (int row = 0; row < rows; ++row) {
    finish_row(weights, tokens, out, row, panel * kPanel, left < kPanel ? left : kPanel, sums + row * kPanel);
  }
}

void bitmap_for_few(const BitmapWeights& weights, const Tokens& tokens, const Output& out, std::int64_t first,
                    std::int64_t last) noexcept {
  if (tokens.count > Narrow::kRows) return bitmap<Wide>(weights, tokens, out, first, last);
  for (std::int64_t panel = first; panel < last; ++panel) {
    rest_of_rows<Narrow::kRows>(0, tokens.count, [&](auto rows, std::int64_t) MEMPOOL_INLINED {
      using Unit = std::conditional_t<(rows <= Wide::kRows), Wide, Narrow>;
      bitmap_tile<Unit, rows>(weights, tokens, out, panel);
    });
  }
}

}  // namespace

const KernelSet kAvx512VnniKernels = {
    &quantize<float>, &quantize<std::uint16_t>, &dense<Wide>, &bitmap_for_few, &interleave, &block4<Wide>};

}  // namespace mempool::kernels
