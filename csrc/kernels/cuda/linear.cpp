#include "kernels/cuda/linear.h"

#include "common/align.h"
#include "kernels/cuda/bitmap_decode.h"
#include "kernels/cuda/block4_decode.h"
#include "kernels/cuda/dense_decode.h"
#include "kernels/cuda/dense_gemm.h"
#include "kernels/cuda/quantize.h"
#include "kernels/cuda/sparse24_decode.h"
#include "kernels/cuda/sparse24_gemm.h"

namespace mempool::kernels::cuda {
namespace {

constexpr std::size_t kAlignment = 256;

// The workspace's parts: tokens, their scales, and sums that blocks share.
struct Places {
  Places(std::int64_t outputs, std::int64_t inputs, std::int64_t tokens, int splits_in) : splits(splits_in) {
    const auto up = [](std::int64_t bytes) { return align_up(static_cast<std::size_t>(bytes), kAlignment); };
    scales = up(tokens * token_bytes(static_cast<int>(inputs)));
    sums = scales + up(tokens * std::int64_t{sizeof(float)});
    arrived = sums + (splits > 1 ? up(tokens * panels_of(outputs) * kPanel * std::int64_t{sizeof(std::int32_t)}) : 0);
    end = arrived + (splits > 1 ? up(panels_of(outputs) * ((tokens + 15) / 16) * std::int64_t{sizeof(unsigned)}) : 0);
  }
  int splits;
  std::size_t scales;
  std::size_t sums;
  std::size_t arrived;
  std::size_t end;
};

int splits_of(Format format, std::int64_t outputs, std::int64_t inputs, std::int64_t tokens, int processors) {
  if (kernel_for(format, tokens) == Kernel::gemm) return 1;
  return splits_for(format, outputs, inputs, tokens, processors);
}

// Quantizes, then calls multiply(tokens, partial, splits).
template <typename Multiply>
int run(Format format, std::int64_t outputs, std::int64_t inputs, const Activations& activations, void* workspace,
        int processors, cudaStream_t stream, Multiply multiply) {
  const std::int64_t count = activations.count;
  const Places places(outputs, inputs, count, splits_of(format, outputs, inputs, count, processors));
  auto* const start = static_cast<char*>(workspace);
  auto* const values = reinterpret_cast<std::int8_t*>(start);
  auto* const scales = reinterpret_cast<float*>(start + places.scales);
  const int tokens = static_cast<int>(count);
  if (activations.is_bfloat16) {
    quantize_bfloat16(static_cast<const unsigned short*>(activations.values), tokens, static_cast<int>(inputs), values,
                      scales, stream);
  } else {
    quantize_float32(static_cast<const float*>(activations.values), tokens, static_cast<int>(inputs), values, scales,
                     stream);
  }
  Partial partial;
  if (places.splits > 1) {
    partial = {reinterpret_cast<std::int32_t*>(start + places.sums),
               reinterpret_cast<unsigned*>(start + places.arrived)};
    static_cast<void>(cudaMemsetAsync(partial.sums, 0, places.end - places.sums, stream));
  }
  multiply(DeviceTokens{values, scales, tokens}, partial, places.splits);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

std::int64_t workspace_bytes(Format format, std::int64_t outputs, std::int64_t inputs, std::int64_t tokens,
                             int processors) noexcept {
  return static_cast<std::int64_t>(
      Places(outputs, inputs, tokens, splits_of(format, outputs, inputs, tokens, processors)).end);
}

int linear(const DenseWeights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream) {
  return run(Format::dense, weights.outputs, weights.inputs, activations, workspace, processors, stream,
             [&](const DeviceTokens& tokens, const Partial& partial, int splits) {
               if (kernel_for(Format::dense, tokens.count) == Kernel::gemm) {
                 return dense_gemm_linear(weights, tokens, output, stream);
               }
               dense_decode_linear(weights, tokens, output, partial, splits, stream);
             });
}

int linear(const BitmapWeights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream) {
  return run(Format::bitmap, weights.outputs, weights.inputs, activations, workspace, processors, stream,
             [&](const DeviceTokens& tokens, const Partial& partial, int splits) {
               bitmap_decode_linear(weights, tokens, output, partial, splits, stream);
             });
}

int linear(const BlockWeights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream) {
  return run(Format::block4, weights.outputs, weights.inputs, activations, workspace, processors, stream,
             [&](const DeviceTokens& tokens, const Partial& partial, int splits) {
               block4_decode_linear(weights, tokens, output, partial, splits, stream);
             });
}

int linear(const Sparse24Weights& weights, const Activations& activations, const Output& output, void* workspace,
           int processors, cudaStream_t stream) {
  return run(Format::sparse24, weights.outputs, weights.inputs, activations, workspace, processors, stream,
             [&](const DeviceTokens& tokens, const Partial& partial, int splits) {
               if (kernel_for(Format::sparse24, tokens.count) == Kernel::gemm) {
                 return sparse24_gemm_linear(weights, tokens, output, stream);
               }
               sparse24_decode_linear(weights, tokens, output, partial, splits, stream);
             });
}

}  // namespace mempool::kernels::cuda
