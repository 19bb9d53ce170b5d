// What packed int8 weights of all formats have in common: the bytes are the same for every instruction set and number
// of threads, and outputs are counted in panels of 64, inputs (K) in groups of 4. formats/ has each format.
//
// Tokens (rows of activations) are quantized to q in -127..127 and kept as q + 128, which dot-product instructions take
// as unsigned. The sum over K is then too large by 128 times the sum of the weights of an output: `sums` take it away.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mempool::kernels {

inline constexpr std::int64_t kPanel = 64;  // outputs
inline constexpr std::int64_t kGroup = 4;   // inputs
inline constexpr int kZero = 128;           // that stands for 0 in a token

// Beyond it the int32 sum of 255 * 128 for each input could overflow.
inline constexpr std::int64_t kMostInputs = 65536;

// All `static`: each file has its own, compiled for its own instruction set.
static constexpr std::int64_t panels_of(std::int64_t outputs) { return (outputs + kPanel - 1) / kPanel; }
static constexpr std::int64_t groups_of(std::int64_t inputs) { return (inputs + kGroup - 1) / kGroup; }
// Of an output in a panel, and of a quantized token.
static constexpr std::int64_t padded_inputs(std::int64_t inputs) { return groups_of(inputs) * kGroup; }

inline constexpr std::int64_t kVector = 64;                                 // bytes
inline constexpr std::int64_t kVectorsOfPanel = kPanel * kGroup / kVector;  // for each group

// Tokens begin on whole cache lines, an odd number of them apart: else many would compete for few places in a cache.
static constexpr std::int64_t token_stride(std::int64_t inputs) {
  return ((padded_inputs(inputs) + kVector - 1) / kVector | 1) * kVector;
}

struct Tokens {
  // [count] tokens a token_stride apart, padded_inputs of them with kZero where there is no input; or interleaved
  const std::uint8_t* values = nullptr;
  const float* scales = nullptr;  // of each token; NaN where an activation was NaN or infinite
  std::int64_t count = 0;         // M
};

// Blocks are skipped for up to kTokenBlock tokens at once, in lanes: for that tokens are interleaved,
//
//     [count / kTokenBlock][K / 4 groups][kTokenBlock tokens][4 inputs]
//
// and in the last block only as many tokens as there are, rounded up to kTokenLanes.
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
