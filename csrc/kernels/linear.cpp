#include "kernels/linear.h"

#include <algorithm>

#include "common/align.h"
#include "common/expects.h"

namespace mempool::kernels {
namespace {

// The fewest multiplications that are worth a thread: some 10 us of work.
constexpr std::int64_t kLeastWork = std::int64_t{1} << 20;
// Tokens of one task: a multiple of every kernel's tile, and enough that reading the weights is a small part of the
// task.
constexpr std::int64_t kTokensOfTask = 192;
static_assert(kTokensOfTask % kTokenBlock == 0);

std::int64_t grain_of(std::int64_t work_of_item) { return std::max(std::int64_t{1}, kLeastWork / work_of_item); }

template <typename Action>
void run(ParallelFor parallel_for, std::int64_t count, std::int64_t grain, const Action& action) {
  if (count <= grain) {
    if (count > 0) action(0, count);
    return;
  }
  const Task task = [](const void* context, std::int64_t first, std::int64_t last) {
    (*static_cast<const Action*>(context))(first, last);
  };
  parallel_for(count, grain, task, &action);
}

std::int64_t bytes_of(OutputType type) { return type == OutputType::bfloat16 ? 2 : 4; }

// The parts of the workspace, as offsets in bytes: scales, tokens, interleaved tokens.
struct Places {
  Places(std::int64_t count, std::int64_t inputs)
      : values(align_up(static_cast<std::size_t>(count) * sizeof(float), kVector)),
        interleaved(values + align_up(static_cast<std::size_t>(count * token_stride(inputs)), kVector)) {}
  std::size_t values;       // quantized tokens
  std::size_t interleaved;  // for block4 alone
};

Tokens quantize(const KernelSet& kernels, std::int64_t inputs, const Activations& activations, void* workspace,
                ParallelFor parallel_for) {
  MEMPOOL_EXPECTS(reinterpret_cast<std::uintptr_t>(workspace) % kVector == 0);
  MEMPOOL_EXPECTS(inputs >= 1 && inputs <= kMostInputs && activations.count >= 1 && activations.values != nullptr);
  auto* const scales = static_cast<float*>(workspace);
  auto* const values = static_cast<std::uint8_t*>(workspace) + Places(activations.count, inputs).values;
  // Quantizing an activation is some 16 times the work of a multiplication.
  run(parallel_for, activations.count, grain_of(16 * inputs), [&](std::int64_t first, std::int64_t last) {
    if (activations.is_bfloat16) {
      kernels.quantize_bfloat16(static_cast<const std::uint16_t*>(activations.values), inputs, first, last, values,
                                scales);
    } else {
      kernels.quantize_float32(static_cast<const float*>(activations.values), inputs, first, last, values, scales);
    }
  });
  return {values, scales, activations.count};
}

// Splits the product into tasks: one panel and, where there are more tokens than kTokensOfTask, that many of them.
template <typename Weights>
void multiply(void (*kernel)(const Weights&, const Tokens&, const Output&, std::int64_t, std::int64_t) noexcept,
              const Weights& weights, const Tokens& tokens, std::int64_t stride, const Output& output,
              ParallelFor parallel_for) {
  MEMPOOL_EXPECTS(weights.outputs >= 1 && output.values != nullptr);
  const std::int64_t parts = std::max(std::int64_t{1}, (tokens.count + kTokensOfTask - 1) / kTokensOfTask);
  const std::int64_t work = kPanel * weights.inputs * std::clamp(tokens.count / 4, std::int64_t{1}, kTokensOfTask);
  run(parallel_for, panels_of(weights.outputs) * parts, grain_of(work), [&](std::int64_t first, std::int64_t last) {
    if (parts == 1) return kernel(weights, tokens, output, first, last);
    for (std::int64_t task = first; task < last; ++task) {
      const std::int64_t token = task % parts * kTokensOfTask;
      const std::int64_t bytes = token * weights.outputs * bytes_of(output.type);
      const Tokens some = {tokens.values + token * stride, tokens.scales + token,
                           std::min(kTokensOfTask, tokens.count - token)};
      const Output there = {static_cast<std::uint8_t*>(output.values) + bytes, output.bias, output.type};
      kernel(weights, some, there, task / parts, task / parts + 1);
    }
  });
}

}  // namespace

std::int64_t workspace_bytes(const DenseWeights& weights, std::int64_t count) noexcept {
  return static_cast<std::int64_t>(Places(count, weights.inputs).interleaved);
}
std::int64_t workspace_bytes(const BitmapWeights& weights, std::int64_t count) noexcept {
  return static_cast<std::int64_t>(Places(count, weights.inputs).interleaved);
}
std::int64_t workspace_bytes(const BlockWeights& weights, std::int64_t count) noexcept {
  return static_cast<std::int64_t>(Places(count, weights.inputs).interleaved) +
         interleaved_bytes(count, weights.inputs);
}

void linear(const KernelSet& kernels, const DenseWeights& weights, const Activations& activations, const Output& output,
            void* workspace, ParallelFor parallel_for) {
  const Tokens tokens = quantize(kernels, weights.inputs, activations, workspace, parallel_for);
  multiply(kernels.dense, weights, tokens, token_stride(weights.inputs), output, parallel_for);
}

void linear(const KernelSet& kernels, const BitmapWeights& weights, const Activations& activations,
            const Output& output, void* workspace, ParallelFor parallel_for) {
  const Tokens tokens = quantize(kernels, weights.inputs, activations, workspace, parallel_for);
  multiply(kernels.bitmap, weights, tokens, token_stride(weights.inputs), output, parallel_for);
}

void linear(const KernelSet& kernels, const BlockWeights& weights, const Activations& activations, const Output& output,
            void* workspace, ParallelFor parallel_for) {
  const std::int64_t inputs = weights.inputs;
  const Tokens tokens = quantize(kernels, inputs, activations, workspace, parallel_for);
  auto* const to = static_cast<std::uint8_t*>(workspace) + Places(tokens.count, inputs).interleaved;
  const std::int64_t blocks = (tokens.count + kTokenBlock - 1) / kTokenBlock;
  run(parallel_for, blocks, grain_of(16 * kTokenBlock * inputs), [&](std::int64_t first, std::int64_t last) {
    kernels.interleave(tokens, inputs, first * kTokenBlock, std::min(last * kTokenBlock, tokens.count), to);
  });
  multiply(kernels.block4, weights, {to, tokens.scales, tokens.count}, padded_inputs(inputs), output, parallel_for);
}

}  // namespace mempool::kernels
