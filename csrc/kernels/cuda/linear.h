// Runs a whole packed layer on the GPU: quantizes activations, multiplies them with packed weights and applies scales
// and bias, on one stream. All pointers are the device's. Outputs are those of the CPU, bit for bit.
#pragma once

#include <cstdint>

#include "kernels/cuda/arguments.h"
#include "kernels/formats/formats.h"
#include "kernels/linear.h"

namespace mempool::kernels::cuda {

using kernels::Format;

// The most tokens of one call: with more a grid would have too many blocks.
inline constexpr std::int64_t kMostTokens = 65535 * 128;

enum class Kernel : std::uint8_t { decode, gemm };

// The kernel for a number of tokens (choices.cpp).
Kernel kernel_for(Format format, std::int64_t tokens) noexcept;
// Split-K of the decode kernels: how many blocks divide the inputs of a panel, on a GPU with `processors`
// multiprocessors.
int splits_for(Format format, std::int64_t outputs, std::int64_t inputs, std::int64_t tokens, int processors) noexcept;
// Split-K of the GEMM: how many blocks divide the inputs of a tile, where it multiplies `panels` panels.
int gemm_splits_for(std::int64_t panels, std::int64_t inputs, std::int64_t tokens, int processors) noexcept;
// How many panels of a sparse weight are expanded at a time for the GEMM: an even number, 2 at least.
int panels_at_once(std::int64_t outputs, std::int64_t inputs, std::int64_t tokens, int processors) noexcept;

// The size in bytes of the workspace that linear() needs; it is aligned to 16.
std::int64_t workspace_bytes(Format format, std::int64_t outputs, std::int64_t inputs, std::int64_t tokens,
                             int processors) noexcept;

// Computes the outputs of a layer with at least one output, for 1 to kMostTokens tokens. Returns 0, or the cudaError_t
// of a launch that failed.
int linear(const DenseWeights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream);
int linear(const BitmapWeights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream);
int linear(const BlockWeights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream);
int linear(const Sparse24Weights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream);

}  // namespace mempool::kernels::cuda
