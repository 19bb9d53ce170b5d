// Expands a bitmap's weights by their masks, with an instruction of AVX-512 VBMI2.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/weights.h"

namespace mempool::kernels {
namespace {

// The prefetch distance in bytes. The hardware does not prefetch where addresses depend on data.
inline constexpr int kValuesAhead = 4096;

inline __m512i expand_vector(std::uint64_t mask, const std::int8_t* values) {
  return _mm512_maskz_expand_epi8(mask, _mm512_loadu_si512(values));
}

// Expands `count` vectors to `to`; returns the first value behind them.
inline const std::int8_t* expand_vectors(const std::uint64_t* masks, const std::int8_t* values, std::int64_t count,
                                         std::int8_t* to) {
  for (std::int64_t i = 0; i < count; ++i) {
    __builtin_prefetch(values + kValuesAhead);
    if (i % 8 == 0) __builtin_prefetch(masks + i + kValuesAhead / 8);
    _mm512_store_si512(to + i * kVector, expand_vector(masks[i], values));
    values += _mm_popcnt_u64(masks[i]);
  }
  return values;
}

}  // namespace
}  // namespace mempool::kernels
