// What the packed formats of int8 weights share: their units, and the tokens and outputs that kernels multiply. The
// bytes of a packed weight are the same for every instruction set and number of threads; outputs (N) are counted in
// panels of 64, inputs (K) in groups of 4. formats/ has each format.
//
// Tokens (rows of activations) are quantized to q in -127..127 and kept as q + 128, with the zero point 128, since
// dot-product instructions take one unsigned operand. The sum over K is then too large by 128 times the sum of an
// output's weights, which is kept in `sums` and subtracted.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mempool::kernels {

inline constexpr std::int64_t kPanel = 64;  // outputs
inline constexpr std::int64_t kGroup = 4;   // inputs
inline constexpr int kZero = 128;           // the zero point of a token: this byte stands for 0

// With more inputs the int32 sum of 255 * 128 for each could overflow.
inline constexpr std::int64_t kMostInputs = 65536;

// All functions are `static`: each file has its own copy, compiled for its own instruction set.
static constexpr bool is_shape(std::int64_t outputs, std::int64_t inputs) {
  return outputs >= 0 && inputs >= 1 && inputs <= kMostInputs;
}
static constexpr std::int64_t panels_of(std::int64_t outputs) { return (outputs + kPanel - 1) / kPanel; }
static constexpr std::int64_t groups_of(std::int64_t inputs) { return (inputs + kGroup - 1) / kGroup; }
// The inputs of an output in a panel, and of a quantized token, padded to whole groups.
static constexpr std::int64_t padded_inputs(std::int64_t inputs) { return groups_of(inputs) * kGroup; }

inline constexpr std::int64_t kVector = 64;                                 // bytes
inline constexpr std::int64_t kVectorsOfPanel = kPanel * kGroup / kVector;  // of one group

// Bytes from a token to the next. Each begins on a cache line, and an odd number of lines after the one before: with an
// even number many tokens would compete for few sets of the cache.
static constexpr std::int64_t token_stride(std::int64_t inputs) {
  return ((padded_inputs(inputs) + kVector - 1) / kVector | 1) * kVector;
}

struct Tokens {
  // `count` tokens a token_stride() apart, each with padded_inputs() bytes, kZero where there is no input; or
  // interleaved tokens, see below.
  const std::uint8_t* values = nullptr;
  const float* scales = nullptr;  // of each token; NaN where an activation was NaN or infinite
  std::int64_t count = 0;         // M
};

// The kernels of block4 have tokens in their lanes, up to kTokenBlock of them. Tokens are interleaved for that:
//
//     [count / kTokenBlock][K / 4 groups][kTokenBlock tokens][4 inputs]
//
// The last block has only the tokens that are left, rounded up to kTokenLanes.
inline constexpr std::int64_t kTokenBlock = 64;
inline constexpr std::int64_t kTokenLanes = 16;

static constexpr std::int64_t interleaved_bytes(std::int64_t count, std::int64_t inputs) {
  return (count + kTokenLanes - 1) / kTokenLanes * kTokenLanes * padded_inputs(inputs);
}

enum class OutputType : std::uint8_t {
  accumulators,  // int32: the exact sums, before scales and bias
  float32,
  bfloat16,
};

struct Output {
  void* values = nullptr;       // [tokens][outputs] of the type
  const float* bias = nullptr;  // of each output, or nullptr
  OutputType type = OutputType::float32;
};

}  // namespace mempool::kernels
