// A whole layer on the GPU: activations are quantized and multiplied with packed weights, on one stream. All pointers
// are the device's. The same outputs as on the CPU, bit for bit.
#pragma once

#include <cstdint>

#include "kernels/cuda/arguments.h"
#include "kernels/formats/formats.h"
#include "kernels/linear.h"

namespace mempool::kernels::cuda {

using kernels::Format;

// Of one call: beyond it a grid has too many blocks.
inline constexpr std::int64_t kMostTokens = 65535 * 128;

enum class Kernel : std::uint8_t { decode, gemm };

// Which kernel runs so many tokens (choices.cpp).
Kernel kernel_for(Format format, std::int64_t tokens) noexcept;
// How many blocks divide the inputs of a panel, on a GPU with so many multiprocessors: of the kernels of few tokens,
int splits_for(Format format, std::int64_t outputs, std::int64_t inputs, std::int64_t tokens, int processors) noexcept;
// and of a GEMM of so many panels.
int gemm_splits_for(std::int64_t panels, std::int64_t inputs, std::int64_t tokens, int processors) noexcept;
// How many panels of a sparse weight are dense at a time where the GEMM runs: an even number, 2 at least.
int panels_at_once(std::int64_t outputs, std::int64_t inputs, std::int64_t tokens, int processors) noexcept;

// What linear() needs beside its arguments, in bytes; aligned to 256.
std::int64_t workspace_bytes(Format format, std::int64_t outputs, std::int64_t inputs, std::int64_t tokens,
                             int processors) noexcept;

// `activations.count`: 1 to kMostTokens. Returns what the launches said: 0, or a cudaError_t.
int linear(const DenseWeights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream);
int linear(const BitmapWeights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream);
int linear(const BlockWeights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream);
int linear(const Sparse24Weights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream);

}  // namespace mempool::kernels::cuda
