// The CPU kernels for packed weights: one set for each instruction set, of which one is chosen at run time, once.
// Kernels call no library and allocate no memory. All sets give the same bits.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/formats/bitmap.h"
#include "kernels/formats/block4.h"
#include "kernels/formats/dense.h"
#include "kernels/weights.h"

namespace mempool::kernels {

// Those of one processor in the order of preference, the best last; no machine runs sets of both.
enum class Isa : std::uint8_t { reference, avx2, avx512, avx512_vnni, avx512_amx, neon, neon_dot, neon_i8mm };
inline constexpr int kIsas = 8;

const char* name_of(Isa isa) noexcept;

struct KernelSet {
  // Quantizes tokens [first, last) of `from` ([count][inputs], float or the bits of bfloat16) to `values`, a
  // token_stride() apart, with one scale for each in `scales`.
  void (*quantize_float32)(const float* from, std::int64_t inputs, std::int64_t first, std::int64_t last,
                           std::uint8_t* values, float* scales) noexcept;
  void (*quantize_bfloat16)(const std::uint16_t* from, std::int64_t inputs, std::int64_t first, std::int64_t last,
                            std::uint8_t* values, float* scales) noexcept;
  // Computes the outputs of panels [first, last) for all tokens.
  void (*dense)(const DenseWeights& weights, const Tokens& tokens, const Output& output, std::int64_t first,
                std::int64_t last) noexcept;
  void (*bitmap)(const BitmapWeights& weights, const Tokens& tokens, const Output& output, std::int64_t first,
                 std::int64_t last) noexcept;
  // Interleaves tokens [first, last) of `tokens` for block4, each to its place in `to` (interleaved_bytes()). `first`
  // is a multiple of kTokenBlock.
  void (*interleave)(const Tokens& tokens, std::int64_t inputs, std::int64_t first, std::int64_t last,
                     std::uint8_t* to) noexcept;
  // The outputs of panels [first, last), from interleaved tokens.
  void (*block4)(const BlockWeights& weights, const Tokens& tokens, const Output& output, std::int64_t first,
                 std::int64_t last) noexcept;
};

// The set for an instruction set; nullptr where this machine cannot run it.
const KernelSet* kernels_of(Isa isa) noexcept;
// The best instruction set that this machine can run, or the one that MEMPOOL_FORCE_ISA names. Throws ConfigError where
// the variable names no set, or a set that this machine cannot run.
Isa current_isa();

}  // namespace mempool::kernels
