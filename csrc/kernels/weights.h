// Packed int8 weights: the bytes are the same for every instruction set and number of threads.
//
// Outputs come in panels of 64, inputs (K) in groups of 4; what is beyond N or K is zero. A panel holds
//
//     [K / 4 groups][64 outputs][4 inputs]  int8
//
// so that 64 bytes are 16 outputs of one group: what one dot-product instruction of AVX-512 VNNI takes.
//
// Tokens (rows of activations) are quantized to q in -127..127 and kept as q + 128, which those instructions take as
// unsigned. The sum over K is then too large by 128 times the sum of the weights of an output: `sums` take it away.
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
static constexpr std::int64_t dense_bytes(std::int64_t outputs, std::int64_t inputs) {
  return panels_of(outputs) * kPanel * padded_inputs(inputs);
}

struct DenseWeights {
  const std::int8_t* panels = nullptr;  // dense_bytes(outputs, inputs)
  const std::int32_t* sums = nullptr;   // of the weights of each output
  const float* scales = nullptr;        // of each output: a weight is its int8 times this
  std::int64_t outputs = 0;             // N
  std::int64_t inputs = 0;              // K, 1 to kMostInputs
};

// The same panels without their zeros: a bit for each weight, and the others packed one behind the other. The values of
// a panel begin on 64 bytes, and a whole vector may be read from where the last ones begin.
inline constexpr std::int64_t kVector = 64;                                 // bytes
inline constexpr std::int64_t kVectorsOfPanel = kPanel * kGroup / kVector;  // for each group

static constexpr std::int64_t bitmap_masks(std::int64_t outputs, std::int64_t inputs) {
  return panels_of(outputs) * groups_of(inputs) * kVectorsOfPanel;
}

struct BitmapWeights {
  const std::uint64_t* masks = nullptr;  // bitmap_masks(); bit i: byte i of that vector is not zero
  const std::int8_t* values = nullptr;   // kVector * (offsets of the end + 1)
  const std::int32_t* offsets =
      nullptr;                         // where a panel's values begin, in kVector bytes, and where the last one's end
  const std::int32_t* sums = nullptr;  // these as in DenseWeights
  const float* scales = nullptr;
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
};

// Blocks of 4 inputs of one output, those that are all zero left out: a bit for each block, and the others one behind
// the other, an output after the other. A row of bits begins with a word.
static constexpr std::int64_t block_words(std::int64_t inputs) { return (groups_of(inputs) + 63) / 64; }

struct BlockWeights {
  const std::uint64_t* masks = nullptr;   // [outputs][block_words(inputs)]
  const std::int8_t* values = nullptr;    // [blocks][kGroup]
  const std::int32_t* offsets = nullptr;  // [outputs + 1]: the first block of an output, and where the last one's end
  const std::int32_t* sums = nullptr;     // these as in DenseWeights
  const float* scales = nullptr;
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
};

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
