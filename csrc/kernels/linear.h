// Runs a whole packed layer on the CPU: quantizes activations, multiplies them with packed weights and applies scales
// and bias, on the threads of a parallel_for that the caller passes in.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace mempool::kernels {

// The input of a layer, [count][inputs], not yet quantized.
struct Activations {
  const void* values = nullptr;  // float, or the bits of bfloat16
  std::int64_t count = 0;
  bool is_bfloat16 = false;
};

// Does items [first, last) of the work; ranges may be done in any order, and at the same time.
using Task = void (*)(const void* context, std::int64_t first, std::int64_t last);
// Calls the task for ranges that make up [0, count), at least `grain` items in each but the last, and returns when all
// are done.
using ParallelFor = void (*)(std::int64_t count, std::int64_t grain, Task task, const void* context);

// The size in bytes of the workspace that linear() needs for `count` tokens; it is aligned to kVector.
std::int64_t workspace_bytes(const DenseWeights& weights, std::int64_t count) noexcept;
std::int64_t workspace_bytes(const BitmapWeights& weights, std::int64_t count) noexcept;
std::int64_t workspace_bytes(const BlockWeights& weights, std::int64_t count) noexcept;

// Computes the outputs of a layer with at least one output, for at least one token.
void linear(const KernelSet& kernels, const DenseWeights& weights, const Activations& activations, const Output& output,
            void* workspace, ParallelFor parallel_for);
void linear(const KernelSet& kernels, const BitmapWeights& weights, const Activations& activations,
            const Output& output, void* workspace, ParallelFor parallel_for);
void linear(const KernelSet& kernels, const BlockWeights& weights, const Activations& activations, const Output& output,
            void* workspace, ParallelFor parallel_for);

}  // namespace mempool::kernels
