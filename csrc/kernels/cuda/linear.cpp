#include "kernels/cuda/linear.h"

#include <algorithm>

#include "common/align.h"
#include "kernels/cuda/bitmap_decode.h"
#include "kernels/cuda/block4_decode.h"
#include "kernels/cuda/dense_decode.h"
#include "kernels/cuda/dense_gemm.h"
#include "kernels/cuda/expand.h"
#include "kernels/cuda/quantize.h"
#include "kernels/cuda/sparse24_decode.h"
#include "kernels/cuda/sparse24_gemm.h"

namespace mempool::kernels::cuda {
namespace {

constexpr std::size_t kAlignment = 256;

// A call's kernel, and where the parts of its workspace are: tokens, their scales, sums that blocks share or panels
// that are made dense.
struct Plan {
  Plan(Format format, std::int64_t outputs, std::int64_t inputs, std::int64_t tokens, int processors)
      : kernel(kernel_for(format, tokens)) {
    const auto up = [](std::int64_t bytes) { return align_up(static_cast<std::size_t>(bytes), kAlignment); };
    scales = up(tokens * token_bytes(static_cast<int>(inputs)));
    end = dense = sums = scales + up(tokens * std::int64_t{sizeof(float)});
    if (kernel == Kernel::decode) splits = splits_for(format, outputs, inputs, tokens, processors);
    if (splits > 1) {
      arrived = sums + up(tokens * panels_of(outputs) * kPanel * std::int64_t{sizeof(std::int32_t)});
      end = arrived + up(panels_of(outputs) * ((tokens + 15) / 16) * std::int64_t{sizeof(unsigned)});
    }
    if (kernel == Kernel::gemm && (format == Format::bitmap || format == Format::block4)) {
      panels = panels_at_once(outputs, inputs, tokens, processors);
      end = dense + up(panels * kPanel * padded_inputs(inputs));
    }
  }

  Kernel kernel;
  int splits = 1;
  int panels = 0;  // that are made dense at a time
  std::size_t scales;
  std::size_t sums;
  std::size_t arrived = 0;
  std::size_t dense;
  std::size_t end;
};

// Quantizes, then calls decode(tokens, partial, splits) or gemm(tokens, memory for dense panels, how many).
template <typename Weights, typename Decode, typename Gemm>
int run(Format format, const Weights& weights, const Activations& activations, void* workspace, int processors,
        cudaStream_t stream, Decode decode, Gemm gemm) {
  const std::int64_t count = activations.count;
  const Plan plan(format, weights.outputs, weights.inputs, count, processors);
  auto* const start = static_cast<char*>(workspace);
  auto* const values = reinterpret_cast<std::int8_t*>(start);
  auto* const scales = reinterpret_cast<float*>(start + plan.scales);
  const int tokens = static_cast<int>(count);
  const int inputs = static_cast<int>(weights.inputs);
  if (activations.is_bfloat16) {
    quantize_bfloat16(static_cast<const unsigned short*>(activations.values), tokens, inputs, values, scales, stream);
  } else {
    quantize_float32(static_cast<const float*>(activations.values), tokens, inputs, values, scales, stream);
  }
  const DeviceTokens quantized = {values, scales, tokens};
  if (plan.kernel == Kernel::gemm) {
    gemm(quantized, reinterpret_cast<std::int8_t*>(start + plan.dense), plan.panels);
    return static_cast<int>(cudaGetLastError());
  }
  Partial partial;
  if (plan.splits > 1) {
    partial = {reinterpret_cast<std::int32_t*>(start + plan.sums), reinterpret_cast<unsigned*>(start + plan.arrived)};
    static_cast<void>(cudaMemsetAsync(partial.sums, 0, plan.end - plan.sums, stream));
  }
  decode(quantized, partial, plan.splits);
  return static_cast<int>(cudaGetLastError());
}

// Some panels after the others: expand(which, to), and multiplied.
template <typename Weights, typename Expand>
void expanded_gemm(const Weights& weights, const DeviceTokens& tokens, const Output& output, std::int8_t* dense,
                   int at_once, cudaStream_t stream, Expand expand) {
  const int panels = static_cast<int>(panels_of(weights.outputs));
  const DenseWeights made = {dense, weights.sums, weights.scales, weights.outputs, weights.inputs};
  for (int first = 0; first < panels; first += at_once) {
    const PanelRange which = {first, std::min(at_once, panels - first)};
    expand(which, dense);
    dense_gemm_linear(made, which, tokens, output, stream);
  }
}

}  // namespace

std::int64_t workspace_bytes(Format format, std::int64_t outputs, std::int64_t inputs, std::int64_t tokens,
                             int processors) noexcept {
  return static_cast<std::int64_t>(Plan(format, outputs, inputs, tokens, processors).end);
}

int linear(const DenseWeights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream) {
  return run(
      Format::dense, weights, activations, workspace, processors, stream,
      [&](const DeviceTokens& tokens, const Partial& partial, int splits) {
        dense_decode_linear(weights, tokens, output, partial, splits, stream);
      },
      [&](const DeviceTokens& tokens, std::int8_t*, int) {
        dense_gemm_linear(weights, {0, static_cast<int>(panels_of(weights.outputs))}, tokens, output, stream);
      });
}

int linear(const BitmapWeights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream) {
  return run(
      Format::bitmap, weights, activations, workspace, processors, stream,
      [&](const DeviceTokens& tokens, const Partial& partial, int splits) {
        bitmap_decode_linear(weights, tokens, output, partial, splits, stream);
      },
      [&](const DeviceTokens& tokens, std::int8_t* dense, int at_once) {
        expanded_gemm(weights, tokens, output, dense, at_once, stream,
                      [&](const PanelRange& which, std::int8_t* to) { expand_bitmap(weights, which, to, stream); });
      });
}

int linear(const BlockWeights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream) {
  return run(
      Format::block4, weights, activations, workspace, processors, stream,
      [&](const DeviceTokens& tokens, const Partial& partial, int splits) {
        block4_decode_linear(weights, tokens, output, partial, splits, stream);
      },
      [&](const DeviceTokens& tokens, std::int8_t* dense, int at_once) {
        expanded_gemm(weights, tokens, output, dense, at_once, stream,
                      [&](const PanelRange& which, std::int8_t* to) { expand_block4(weights, which, to, stream); });
      });
}

int linear(const Sparse24Weights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream) {
  return run(
      Format::sparse24, weights, activations, workspace, processors, stream,
      [&](const DeviceTokens& tokens, const Partial& partial, int splits) {
        sparse24_decode_linear(weights, tokens, output, partial, splits, stream);
      },
      [&](const DeviceTokens& tokens, std::int8_t*, int) { sparse24_gemm_linear(weights, tokens, output, stream); });
}

}  // namespace mempool::kernels::cuda
