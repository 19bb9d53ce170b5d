// Kernels for compressed weights, one set for each instruction set; which of them runs is decided once, at run time.
// They call nothing and allocate nothing. All sets give the same bits.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/formats/bitmap.h"
#include "kernels/formats/block4.h"
#include "kernels/formats/dense.h"
#include "kernels/weights.h"

namespace mempool::kernels {

enum class Isa : std::uint8_t { reference, avx2, avx512, avx512_vnni, avx512_amx };
inline constexpr int kIsas = 5;

const char* name_of(Isa isa) noexcept;

struct KernelSet {
  // Tokens [first, last) of `from` ([count][inputs], float or the bits of bfloat16) to `values` and `scales`.
  void (*quantize_float32)(const float* from, std::int64_t inputs, std::int64_t first, std::int64_t last,
                           std::uint8_t* values, float* scales) noexcept;
  void (*quantize_bfloat16)(const std::uint16_t* from, std::int64_t inputs, std::int64_t first, std::int64_t last,
                            std::uint8_t* values, float* scales) noexcept;
  // The outputs of panels [first, last) for all tokens.
  void (*dense)(const DenseWeights& weights, const Tokens& tokens, const Output& output, std::int64_t first,
                std::int64_t last) noexcept;
  void (*bitmap)(const BitmapWeights& weights, const Tokens& tokens, const Output& output, std::int64_t first,
                 std::int64_t last) noexcept;
  // Tokens `first` (a multiple of kTokenBlock) to `last` of `tokens`, interleaved, to where they belong in `to`
  // (interleaved_bytes).
  void (*interleave)(const Tokens& tokens, std::int64_t inputs, std::int64_t first, std::int64_t last,
                     std::uint8_t* to) noexcept;
  // `tokens`: interleaved.
  void (*block4)(const BlockWeights& weights, const Tokens& tokens, const Output& output, std::int64_t first,
                 std::int64_t last) noexcept;
};

// nullptr where this machine cannot run it.
const KernelSet* kernels_of(Isa isa) noexcept;
// The best that this machine can run, or what MEMPOOL_FORCE_ISA names. Throws ConfigError where that is no set, or one
// that this machine cannot run.
Isa current_isa();

}  // namespace mempool::kernels
