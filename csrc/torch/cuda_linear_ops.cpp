// The same operators on CUDA tensors: linear_ops.cpp says what they are.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <optional>

#include "kernels/cuda/linear.h"
#include "torch/op_checks.h"

namespace mempool {
namespace {

namespace gpu = kernels::cuda;

constexpr std::size_t kVectorBytes = 16;  // of one load

// Multiprocessors of a device, once it is known to run the kernels.
int processors_of(c10::DeviceIndex device) {
  static std::array<std::atomic<int>, 64> known{};
  if (static_cast<std::size_t>(device) >= known.size())
    refuse("device " + std::to_string(device) + " is one too many.");
  std::atomic<int>& processors = known[static_cast<std::size_t>(device)];
  if (const int count = processors.load(std::memory_order_relaxed); count != 0) return count;
  int count = 0;
  int major = 0;
  int minor = 0;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess || count < 1) {
    refuse("device " + std::to_string(device) + " does not say how many multiprocessors it has.");
  }
  if (major < 8) {
    refuse("packed weights need compute capability 8.0 on a GPU, and device " + std::to_string(device) + " has " +
           std::to_string(major) + "." + std::to_string(minor) + ". Move the layer to the CPU.");
  }
  processors.store(count, std::memory_order_relaxed);
  return count;
}

template <typename Weights>
Tensor run(const Tensor& input, const Weights& weights, gpu::Format format, const float* bias) {
  require_type(input, "input", {ScalarType::Float, ScalarType::BFloat16});
  const std::int64_t count = input.numel() / weights.inputs;
  if (count > gpu::kMostTokens) {
    refuse("a call takes " + std::to_string(gpu::kMostTokens) + " rows at most, and `input` has " +
           std::to_string(count) + ": split the batch.");
  }
  const c10::cuda::CUDAGuard guard(input.device());
  const int processors = processors_of(input.device().index());
  const c10::MaybeOwned<Tensor> rows = input.expect_contiguous();
  c10::DimVector shape(input.sizes());
  shape.back() = weights.outputs;
  Tensor output = at::empty(shape, input.options());
  if (count == 0 || weights.outputs == 0) return output;
  const std::int64_t bytes = gpu::workspace_bytes(format, weights.outputs, weights.inputs, count, processors);
  const Tensor workspace = at::empty({bytes}, input.options().dtype(ScalarType::Byte));
  const bool is_bfloat16 = input.scalar_type() == ScalarType::BFloat16;
  const kernels::Output to = {output.mutable_data_ptr(), bias,
                              is_bfloat16 ? kernels::OutputType::bfloat16 : kernels::OutputType::float32};
  const int error =
      gpu::linear(weights, kernels::Activations{rows->const_data_ptr(), count, is_bfloat16}, to,
                  workspace.mutable_data_ptr(), processors, c10::cuda::getCurrentCUDAStream(input.device().index()));
  if (error != 0) {
    refuse(std::string("a kernel could not be launched: ") + cudaGetErrorString(static_cast<cudaError_t>(error)) + ".");
  }
  return output;
}

void require_cuda(const Tensor& input) {
  if (!input.is_cuda()) refuse("`input` has to be on a GPU, as the weights are.");
}

Tensor int8_linear(const Tensor& input, const Tensor& panels, const Tensor& sums, const Tensor& scales,
                   const std::optional<Tensor>& bias, std::int64_t inputs) {
  require_cuda(input);
  const Outputs outputs(sums, scales, bias, input.device());
  require_inputs(input, outputs, inputs);
  require_plain(panels, "panels", {ScalarType::Byte}, kVectorBytes, input.device());
  require_elements(panels, "panels", kernels::dense_bytes(outputs.count, inputs));
  const kernels::DenseWeights weights = {static_cast<const std::int8_t*>(panels.const_data_ptr()), outputs.sums,
                                         outputs.scales, outputs.count, inputs};
  return run(input, weights, gpu::Format::dense, outputs.bias);
}

// That `values` is as long as the offsets say is not asked at each call: the answer lies on the GPU. Modules check it
// when buffers come in.
template <typename Weights>
Tensor run_sparse(const Tensor& input, const Tensor& masks, const Tensor& values, const Tensor& offsets,
                  const Outputs& outputs, std::int64_t words, std::int64_t rows, gpu::Format format) {
  require_plain(masks, "masks", {ScalarType::Byte}, kVectorBytes, input.device());
  require_elements(masks, "masks", words * static_cast<std::int64_t>(sizeof(std::uint64_t)));
  require_plain(offsets, "offsets", {ScalarType::Int}, sizeof(std::int32_t), input.device());
  require_elements(offsets, "offsets", rows + 1);
  require_plain(values, "values", {ScalarType::Byte}, kVectorBytes, input.device());
  const Weights weights = {static_cast<const std::uint64_t*>(masks.const_data_ptr()),
                           static_cast<const std::int8_t*>(values.const_data_ptr()),
                           static_cast<const std::int32_t*>(offsets.const_data_ptr()),
                           outputs.sums,
                           outputs.scales,
                           outputs.count,
                           input.size(-1)};
  return run(input, weights, format, outputs.bias);
}

Tensor bitmap_linear(const Tensor& input, const Tensor& masks, const Tensor& values, const Tensor& offsets,
                     const Tensor& sums, const Tensor& scales, const std::optional<Tensor>& bias, std::int64_t inputs) {
  require_cuda(input);
  const Outputs outputs(sums, scales, bias, input.device());
  require_inputs(input, outputs, inputs);
  return run_sparse<kernels::BitmapWeights>(input, masks, values, offsets, outputs,
                                            kernels::bitmap_masks(outputs.count, inputs),
                                            kernels::panels_of(outputs.count), gpu::Format::bitmap);
}

Tensor block4_linear(const Tensor& input, const Tensor& masks, const Tensor& values, const Tensor& offsets,
                     const Tensor& sums, const Tensor& scales, const std::optional<Tensor>& bias, std::int64_t inputs) {
  require_cuda(input);
  const Outputs outputs(sums, scales, bias, input.device());
  require_inputs(input, outputs, inputs);
  return run_sparse<kernels::BlockWeights>(input, masks, values, offsets, outputs,
                                           outputs.count * kernels::block_words(inputs), outputs.count,
                                           gpu::Format::block4);
}

Tensor sparse24_linear(const Tensor& input, const Tensor& values, const Tensor& places, const Tensor& sums,
                       const Tensor& scales, const std::optional<Tensor>& bias, std::int64_t inputs) {
  require_cuda(input);
  const Outputs outputs(sums, scales, bias, input.device());
  require_inputs(input, outputs, inputs);
  require_plain(values, "values", {ScalarType::Byte}, kVectorBytes, input.device());
  require_elements(values, "values", kernels::sparse24_values(outputs.count, inputs));
  require_plain(places, "places", {ScalarType::Int}, kVectorBytes, input.device());
  require_elements(places, "places", kernels::sparse24_places(outputs.count, inputs));
  const kernels::Sparse24Weights weights = {static_cast<const std::int8_t*>(values.const_data_ptr()),
                                            static_cast<const std::uint32_t*>(places.const_data_ptr()),
                                            outputs.sums,
                                            outputs.scales,
                                            outputs.count,
                                            inputs};
  return run(input, weights, gpu::Format::sparse24, outputs.bias);
}

}  // namespace
}  // namespace mempool

TORCH_LIBRARY_IMPL(mempool, CUDA, m) {
  m.impl("int8_linear", &mempool::int8_linear);
  m.impl("bitmap_linear", &mempool::bitmap_linear);
  m.impl("block4_linear", &mempool::block4_linear);
  m.impl("sparse24_linear", &mempool::sparse24_linear);
}
