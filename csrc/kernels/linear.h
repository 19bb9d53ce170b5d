// A whole layer: activations are quantized, multiplied with packed weights, and made outputs, on as many threads as the
// caller's parallel_for has.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace mempool::kernels {

// Rows as they come, [count][inputs].
struct Activations {
  const void* values = nullptr;  // float, or the bits of bfloat16
  std::int64_t count = 0;
  bool is_bfloat16 = false;
};

// Work that is the same in any order: items [first, last).
using Task = void (*)(const void* context, std::int64_t first, std::int64_t last);
// Calls the task for ranges that make up [0, count), at least `grain` items in each but the last, and returns when all
// are done.
using ParallelFor = void (*)(std::int64_t count, std::int64_t grain, Task task, const void* context);

// What linear() needs beside its arguments, in bytes; aligned as memory for vectors is (64).
std::int64_t workspace_bytes(const DenseWeights& weights, std::int64_t count) noexcept;
std::int64_t workspace_bytes(const BitmapWeights& weights, std::int64_t count) noexcept;
std::int64_t workspace_bytes(const BlockWeights& weights, std::int64_t count) noexcept;

void linear(const KernelSet& kernels, const DenseWeights& weights, const Activations& activations, const Output& output,
            void* workspace, ParallelFor parallel_for);
void linear(const KernelSet& kernels, const BitmapWeights& weights, const Activations& activations,
            const Output& output, void* workspace, ParallelFor parallel_for);
void linear(const KernelSet& kernels, const BlockWeights& weights, const Activations& activations, const Output& output,
            void* workspace, ParallelFor parallel_for);

}  // namespace mempool::kernels
