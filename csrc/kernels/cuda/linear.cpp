#include "kernels/cuda/linear.h"

#include <algorithm>

#include "common/align.h"
#include "common/expects.h"
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

// The kernel of a call, and the parts of its workspace as offsets in bytes: quantized tokens, their scales, expanded
// panels, the sums of split-K.
struct Plan {
  Plan(Format format, std::int64_t outputs, std::int64_t inputs, std::int64_t tokens, int processors)
      : kernel(kernel_for(format, tokens)) {
    const auto up = [](std::int64_t bytes) { return align_up(static_cast<std::size_t>(bytes), kAlignment); };
    scales = up(tokens * token_bytes(static_cast<int>(inputs)));
    dense = scales + up(tokens * std::int64_t{sizeof(float)});
    sums = dense;
    std::int64_t multiplied = panels_of(outputs);  // panels that one launch multiplies
    if (kernel == Kernel::decode) {
      splits = splits_for(format, outputs, inputs, tokens, processors);
    } else {
      if (format == Format::bitmap || format == Format::block4) {
        multiplied = panels = panels_at_once(outputs, inputs, tokens, processors);
        sums = dense + up(panels * kPanel * padded_inputs(inputs));
      }
      splits = gemm_splits_for(multiplied, inputs, tokens, processors);
    }
    arrived = sums;
    end = sums;
    if (splits > 1) {
      arrived = sums + up(tokens * multiplied * kPanel * std::int64_t{sizeof(std::int32_t)});
      // At most one counter for each panel and 16 tokens.
      end = arrived + up(multiplied * ((tokens + 15) / 16) * std::int64_t{sizeof(unsigned)});
    }
  }

  Kernel kernel;
  int splits = 1;
  int panels = 0;  // that are expanded at a time
  std::size_t scales;
  std::size_t dense;
  std::size_t sums;
  std::size_t arrived;
  std::size_t end;
};

// The arguments of the kernel that multiplies the tokens of a call.
struct Multiplication {
  // The sums of split-K, set to zero.
  Partial cleared(cudaStream_t stream) const {
    if (splits > 1) static_cast<void>(cudaMemsetAsync(partial.sums, 0, partial_bytes, stream));
    return partial;
  }

  DeviceTokens tokens;
  Kernel kernel;
  int splits;
  Partial partial;
  std::size_t partial_bytes;  // from `partial.sums` on
  std::int8_t* dense;         // where panels are expanded
  int panels;                 // how many at a time
};

// Quantizes the activations, then calls multiply(Multiplication).
template <typename Weights, typename Multiply>
int run(Format format, const Weights& weights, const Activations& activations, void* workspace, int processors,
        cudaStream_t stream, Multiply multiply) {
  const std::int64_t count = activations.count;
  MEMPOOL_EXPECTS(is_shape(weights.outputs, weights.inputs) && weights.outputs >= 1);
  MEMPOOL_EXPECTS(count >= 1 && count <= kMostTokens && processors >= 1);
  MEMPOOL_EXPECTS(reinterpret_cast<std::uintptr_t>(workspace) % 16 == 0);
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
  const Partial partial = {reinterpret_cast<std::int32_t*>(start + plan.sums),
                           reinterpret_cast<unsigned*>(start + plan.arrived)};
  multiply(Multiplication{{values, scales, tokens},
                          plan.kernel,
                          plan.splits,
                          partial,
                          plan.end - plan.sums,
                          reinterpret_cast<std::int8_t*>(start + plan.dense),
                          plan.panels});
  return static_cast<int>(cudaGetLastError());
}

// Expands some panels at a time by expand(which, to), and multiplies them by the GEMM.
template <typename Weights, typename Expand>
void expanded_gemm(const Weights& weights, const Multiplication& call, const Output& output, cudaStream_t stream,
                   Expand expand) {
  const int panels = static_cast<int>(panels_of(weights.outputs));
  const DenseWeights made = {call.dense, weights.sums, weights.scales, weights.outputs, weights.inputs};
  for (int first = 0; first < panels; first += call.panels) {
    const PanelRange which = {first, std::min(call.panels, panels - first)};
    expand(which, call.dense);
    dense_gemm_linear(made, which, call.tokens, output, call.cleared(stream), call.splits, stream);
  }
}

}  // namespace

std::int64_t workspace_bytes(Format format, std::int64_t outputs, std::int64_t inputs, std::int64_t tokens,
                             int processors) noexcept {
  return static_cast<std::int64_t>(Plan(format, outputs, inputs, tokens, processors).end);
}

int linear(const DenseWeights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream) {
  return run(Format::dense, weights, activations, workspace, processors, stream, [&](const Multiplication& call) {
    if (call.kernel == Kernel::gemm) {
      const PanelRange all = {0, static_cast<int>(panels_of(weights.outputs))};
      return dense_gemm_linear(weights, all, call.tokens, output, call.cleared(stream), call.splits, stream);
    }
    dense_decode_linear(weights, call.tokens, output, call.cleared(stream), call.splits, stream);
  });
}

int linear(const BitmapWeights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream) {
  return run(Format::bitmap, weights, activations, workspace, processors, stream, [&](const Multiplication& call) {
    if (call.kernel == Kernel::gemm) {
      return expanded_gemm(weights, call, output, stream, [&](const PanelRange& which, std::int8_t* to) {
        expand_bitmap(weights, which, to, stream);
      });
    }
    bitmap_decode_linear(weights, call.tokens, output, call.cleared(stream), call.splits, stream);
  });
}

int linear(const BlockWeights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream) {
  return run(Format::block4, weights, activations, workspace, processors, stream, [&](const Multiplication& call) {
    if (call.kernel == Kernel::gemm) {
      return expanded_gemm(weights, call, output, stream, [&](const PanelRange& which, std::int8_t* to) {
        expand_block4(weights, which, to, stream);
      });
    }
    block4_decode_linear(weights, call.tokens, output, call.cleared(stream), call.splits, stream);
  });
}

int linear(const Sparse24Weights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream) {
  return run(Format::sparse24, weights, activations, workspace, processors, stream, [&](const Multiplication& call) {
    if (call.kernel == Kernel::gemm) {
      return sparse24_gemm_linear(weights, call.tokens, output, call.cleared(stream), call.splits, stream);
    }
    sparse24_decode_linear(weights, call.tokens, output, call.cleared(stream), call.splits, stream);
  });
}

}  // namespace mempool::kernels::cuda
