// The operators that run packed weights on CUDA tensors; linear_ops.cpp has those on CPU tensors.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <torch/library.h>

#include <array>
#include <atomic>

#include "kernels/cuda/linear.h"
#include "torch/format_ops.h"

namespace mempool {
namespace {

namespace gpu = kernels::cuda;

// The number of multiprocessors of a device. Refuses a device that cannot run the kernels.
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

struct OnGpu {
  template <typename Format>
  static c10::Device device_of(const Tensor& input) {
    if (!input.is_cuda()) refuse("`input` has to be on a GPU, as the weights are.");
    return input.device();
  }

  template <typename Format>
  static Tensor run(const Tensor& input, const typename Format::Weights& weights, const float* bias) {
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
    const std::int64_t bytes =
        gpu::workspace_bytes(Format::kFormat, weights.outputs, weights.inputs, count, processors);
    const Tensor workspace = at::empty({bytes}, input.options().dtype(ScalarType::Byte));
    const bool is_bfloat16 = input.scalar_type() == ScalarType::BFloat16;
    const kernels::Output to = {output.mutable_data_ptr(), bias,
                                is_bfloat16 ? kernels::OutputType::bfloat16 : kernels::OutputType::float32};
    const int error =
        gpu::linear(weights, kernels::Activations{rows->const_data_ptr(), count, is_bfloat16}, to,
                    workspace.mutable_data_ptr(), processors, c10::cuda::getCurrentCUDAStream(input.device().index()));
    if (error != 0) {
      refuse(std::string("a kernel could not be launched: ") + cudaGetErrorString(static_cast<cudaError_t>(error)) +
             ".");
    }
    return output;
  }
};

}  // namespace
}  // namespace mempool

TORCH_LIBRARY_IMPL(mempool, CUDA, m) {
  mempool::kernels::AllFormats::each([&m]<typename Format>(Format) {
    m.impl(mempool::linear_name<Format>().c_str(), &mempool::LinearOf<mempool::OnGpu, Format>::call);
  });
}
