// The arguments of the CUDA kernels beside the packed weights, which are those of the CPU, byte for byte
// (kernels/formats). Tokens are kept as signed bytes without a zero point, so the sums of weights are not needed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/weights.h"

namespace mempool::kernels::cuda {

inline constexpr int kWarp = 32;

// Bytes from a token to the next: a multiple of 16, for loads of 16. The padding is zero.
inline constexpr int token_bytes(int inputs) { return (inputs + 15) / 16 * 16; }

struct DeviceTokens {
  const std::int8_t* values = nullptr;  // [count][token_bytes]
  const float* scales = nullptr;        // of each token; NaN where an activation was NaN or infinite
  int count = 0;
};

// Some of a weight's panels.
struct PanelRange {
  int first = 0;
  int count = 0;
};

// For split-K, where blocks divide the inputs: the sums that they add to. All zero before a kernel.
struct Partial {
  std::int32_t* sums = nullptr;  // [tokens][panels * kPanel], of the panels that the kernel multiplies
  unsigned* arrived = nullptr;   // [blocks of tokens][panels or tiles]: how many blocks have added their sums
};

}  // namespace mempool::kernels::cuda
