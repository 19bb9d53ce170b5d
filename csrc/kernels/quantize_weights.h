// Quantizes a dense weight to int8, symmetric and per output channel: the step before packing it into any format.
#pragma once

#include <cstdint>

namespace mempool::kernels {

// Writes int8 of -127..127, rounded with halves to even, and one scale for each output: its largest magnitude divided
// by 127. There is no zero point. Returns -1, or the first output that has a NaN or an infinite weight; that output and
// those behind it are then not quantized.
std::int64_t quantize_weights(const float* weights, std::int64_t outputs, std::int64_t inputs, std::int8_t* quantized,
                              float* scales) noexcept;

}  // namespace mempool::kernels
