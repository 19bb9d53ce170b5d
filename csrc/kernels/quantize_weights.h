// Quantizing weights: the step before any packed format.
#pragma once

#include <cstdint>

namespace mempool::kernels {

// One scale for each output, its largest magnitude over 127; -127..127, halves to even. Returns the first output that
// has a NaN or an infinite weight, and leaves the rest undone; -1: none.
std::int64_t quantize_weights(const float* weights, std::int64_t outputs, std::int64_t inputs, std::int8_t* quantized,
                              float* scales) noexcept;

}  // namespace mempool::kernels
