// Weights as they come, [N][K] int8, to the packed formats and back: exact inverses.
#pragma once

#include <cstdint>

#include "kernels/formats/sparse24.h"
#include "kernels/weights.h"

namespace mempool::kernels {

// `panels`: dense_bytes(outputs, inputs). `sums`: one for each output.
void pack_dense(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::int8_t* panels,
                std::int32_t* sums) noexcept;
void unpack_dense(const std::int8_t* panels, std::int64_t outputs, std::int64_t inputs, std::int8_t* weights) noexcept;

// `offsets`: one for each panel, and the end. Returns the bytes that the values need.
std::int64_t measure_bitmap(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs,
                            std::int32_t* offsets) noexcept;
// With the offsets of measure_bitmap(). `masks`: bitmap_masks(). `values`: as many bytes as it returned.
void pack_bitmap(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, const std::int32_t* offsets,
                 std::uint64_t* masks, std::int8_t* values, std::int32_t* sums) noexcept;
// Precondition: is_sound().
void unpack_bitmap(const BitmapWeights& packed, std::int8_t* weights) noexcept;

// `offsets`: one for each output, and the end. Returns the number of blocks.
std::int64_t measure_block4(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs,
                            std::int32_t* offsets) noexcept;
// With the offsets of measure_block4(). `masks`: block_words(inputs) for each output. `values`: 4 bytes for each block.
void pack_block4(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, const std::int32_t* offsets,
                 std::uint64_t* masks, std::int8_t* values, std::int32_t* sums) noexcept;
// Precondition: is_sound().
void unpack_block4(const BlockWeights& packed, std::int8_t* weights) noexcept;

// False where four inputs have more than two weights that are not zero: then what was written is not to be used.
// `values`: sparse24_values(). `places`: sparse24_places().
bool pack_sparse24(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::int8_t* values,
                   std::uint32_t* places, std::int32_t* sums) noexcept;
// Precondition: is_sound().
void unpack_sparse24(const Sparse24Weights& packed, std::int8_t* weights) noexcept;

// Whether kernels may read it and get what was packed: masks fit offsets, offsets fit `value_bytes`, sums fit the
// weights, and nothing is beyond N and K.
bool is_sound(const DenseWeights& packed) noexcept;
bool is_sound(const BitmapWeights& packed, std::int64_t value_bytes) noexcept;
bool is_sound(const BlockWeights& packed, std::int64_t value_bytes) noexcept;
bool is_sound(const Sparse24Weights& packed) noexcept;

// One scale for each output, its largest magnitude over 127; -127..127, halves to even. Returns the first output that
// has a NaN or an infinite weight, and leaves the rest undone; -1: none.
std::int64_t quantize_weights(const float* weights, std::int64_t outputs, std::int64_t inputs, std::int8_t* quantized,
                              float* scales) noexcept;

}  // namespace mempool::kernels
