// What kernels on the GPU take. Packed weights are those of the CPU, byte for byte (kernels/formats). Tokens are kept
// as signed bytes, so the sums of weights are not needed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/weights.h"

namespace mempool::kernels::cuda {

inline constexpr int kWarp = 32;

// Bytes from a token to the next: whole loads of 16, zero beyond the inputs.
inline constexpr int token_bytes(int inputs) { return (inputs + 15) / 16 * 16; }

struct DeviceTokens {
  const std::int8_t* values = nullptr;  // [count][token_bytes]
  const float* scales = nullptr;        // of each token; NaN where an activation was NaN or infinite
  int count = 0;
};

// Of a weight's panels.
struct PanelRange {
  int first = 0;
  int count = 0;
};

// Where inputs are divided among blocks: their sums. All zero before a kernel.
struct Partial {
  std::int32_t* sums = nullptr;  // [tokens][panels * kPanel], of the panels that the kernel has
  unsigned* arrived = nullptr;   // [blocks of tokens][panels], or of tiles
};

}  // namespace mempool::kernels::cuda
