// The kernels for AVX2. Its instruction for products of unsigned and signed bytes (vpmaddubsw) saturates 16-bit sums;
// so bytes are widened to 16 bits first, even and odd ones apart, and every sum is exact.
#include <immintrin.h>

#include "kernels/cpu/bitmap.inl"
#include "kernels/cpu/block4.inl"
#include "kernels/cpu/dense.inl"
#include "kernels/cpu/quantize.inl"
#include "kernels/cpu/sets.h"

namespace mempool::kernels {
namespace {

struct Avx2 : GroupByGroup<Avx2> {
  static constexpr int kLanes = 8;
  static constexpr int kVectors = 2;
  static constexpr int kRows = 3;  // 6 vectors of sums, 4 of weights, 2 of inputs
  static constexpr int kChains = 8;
  using Sum = __m256i;
  struct Pair {
    __m256i even;
    __m256i odd;
  };
  using Weights = Pair;
  using Inputs = Pair;
  static Sum zero() { return _mm256_setzero_si256(); }
  static Sum load_sum(const std::int32_t* from) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(from)); }
  static Sum add(Sum a, Sum b) { return _mm256_add_epi32(a, b); }
  static Weights widened(__m256i bytes) {
    return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
  }
  static Weights load(const std::int8_t* from) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Inputs broadcast(const std::uint8_t* from) {
    std::int32_t group = 0;
    std::memcpy(&group, from, sizeof(group));
    return {_mm256_set1_epi32(group & 0x00FF00FF), _mm256_set1_epi32((group >> 8) & 0x00FF00FF)};
  }
  static Inputs load_tokens(const std::uint8_t* from) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm256_and_si256(bytes, _mm256_set1_epi16(0xFF)), _mm256_srli_epi16(bytes, 8)};
  }
  static Weights broadcast_block(const std::int8_t* from) {
    std::int32_t block = 0;
    std::memcpy(&block, from, sizeof(block));
    return widened(_mm256_set1_epi32(block));
  }
  static std::int64_t list_groups(const std::uint64_t* masks, std::int64_t words, std::uint16_t* groups) {
    return list_groups_plainly(masks, words, groups);
  }
  static Sum dot(Sum sum, const Inputs& inputs, const Weights& weights) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(inputs.even, weights.even));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(inputs.odd, weights.odd));
  }
  static const std::int8_t* expand(const std::uint64_t* masks, const std::int8_t* values, std::int64_t vectors,
                                   std::int8_t* to) {
    return expand_plainly(masks, values, vectors, to);
  }
  static void store(std::int32_t* to, Sum sum) { _mm256_store_si256(reinterpret_cast<__m256i*>(to), sum); }
};

}  // namespace

const KernelSet kAvx2Kernels = {&quantize<float>, &quantize<std::uint16_t>, &dense<Avx2>, &bitmap<Avx2>, &interleave,
                                &block4<Avx2>};

}  // namespace mempool::kernels
