// The operators that run packed weights: torch.ops.mempool.int8_linear, bitmap_linear and block4_linear.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "kernels/linear.h"
#include "torch/op_checks.h"

namespace mempool {
namespace {

using kernels::Activations;
using kernels::Output;
using kernels::OutputType;

void parallel_for(std::int64_t count, std::int64_t grain, kernels::Task task, const void* context) {
  torch::stable::parallel_for(0, count, grain,
                              [&](std::int64_t first, std::int64_t last) { task(context, first, last); });
}

// What all formats share: one sum and one scale for each output, and as many biases if there are any.
struct Outputs {
  Outputs(const Tensor& sums_in, const Tensor& scales_in, const std::optional<Tensor>& bias_in) {
    require_plain(scales_in, "scales", {ScalarType::Float}, sizeof(float));
    count = scales_in.numel();
    require_plain(sums_in, "sums", {ScalarType::Int}, sizeof(std::int32_t));
    require_elements(sums_in, "sums", count);
    if (bias_in) {
      require_plain(*bias_in, "bias", {ScalarType::Float}, sizeof(float));
      require_elements(*bias_in, "bias", count);
      bias = static_cast<const float*>(bias_in->const_data_ptr());
    }
    sums = static_cast<const std::int32_t*>(sums_in.const_data_ptr());
    scales = static_cast<const float*>(scales_in.const_data_ptr());
  }
  std::int64_t count;
  const std::int32_t* sums;
  const float* scales;
  const float* bias = nullptr;
};

std::int64_t inputs_of(const Tensor& input, const Outputs& outputs) {
  if (input.dim() < 1) refuse("`input` has to have a last dimension, the inputs of the layer.");
  const std::int64_t inputs = input.size(input.dim() - 1);
  require_shape(outputs.count, inputs);
  return inputs;
}

template <typename Weights>
Tensor run(const Tensor& input, const Weights& weights, const Outputs& outputs) {
  if (!input.is_cpu()) refuse("`input` has to be on the CPU, as the weights are.");
  require_type(input, "input", {ScalarType::Float, ScalarType::BFloat16});
  const Tensor rows = input.is_contiguous() ? input : torch::stable::contiguous(input);
  std::vector<std::int64_t> shape(input.sizes().begin(), input.sizes().end());
  shape.back() = outputs.count;
  Tensor output = torch::stable::new_empty(input, shape);
  const std::int64_t count = input.numel() / weights.inputs;
  if (count == 0 || outputs.count == 0) return output;
  const std::int64_t bytes = kernels::workspace_bytes(weights, count);
  const Tensor workspace = torch::stable::new_empty(input, {bytes}, ScalarType::Byte);
  const bool is_bfloat16 = input.scalar_type() == ScalarType::BFloat16;
  kernels::linear(
      *kernels::kernels_of(kernels::current_isa()), weights, Activations{rows.const_data_ptr(), count, is_bfloat16},
      Output{output.mutable_data_ptr(), outputs.bias, is_bfloat16 ? OutputType::bfloat16 : OutputType::float32},
      workspace.mutable_data_ptr(), parallel_for);
  return output;
}

Tensor int8_linear(const Tensor& input, const Tensor& panels, const Tensor& sums, const Tensor& scales,
                   const std::optional<Tensor>& bias) {
  const Outputs outputs(sums, scales, bias);
  const std::int64_t inputs = inputs_of(input, outputs);
  require_plain(panels, "panels", {ScalarType::Byte});
  require_elements(panels, "panels", kernels::dense_bytes(outputs.count, inputs));
  return run(input,
             kernels::DenseWeights{static_cast<const std::int8_t*>(panels.const_data_ptr()), outputs.sums,
                                   outputs.scales, outputs.count, inputs},
             outputs);
}

// The buffers of a sparse format fit each other in size. That the masks fit the offsets is what `check_…` says, once,
// when the buffers come in: looking at every mask would cost as much as the product.
template <typename Weights>
Tensor run_sparse(const Tensor& input, const Tensor& masks, const Tensor& values, const Tensor& offsets,
                  const Outputs& outputs, std::int64_t words, std::int64_t rows, std::int64_t unit,
                  std::int64_t slack) {
  require_plain(masks, "masks", {ScalarType::Byte}, sizeof(std::uint64_t));
  require_elements(masks, "masks", words * static_cast<std::int64_t>(sizeof(std::uint64_t)));
  require_plain(offsets, "offsets", {ScalarType::Int}, sizeof(std::int32_t));
  require_elements(offsets, "offsets", rows + 1);
  require_plain(values, "values", {ScalarType::Byte});
  const auto* const first = static_cast<const std::int32_t*>(offsets.const_data_ptr());
  require_elements(values, "values", (std::int64_t{first[rows]} + slack) * unit);
  return run(input,
             Weights{static_cast<const std::uint64_t*>(masks.const_data_ptr()),
                     static_cast<const std::int8_t*>(values.const_data_ptr()), first, outputs.sums, outputs.scales,
                     outputs.count, input.size(input.dim() - 1)},
             outputs);
}

Tensor bitmap_linear(const Tensor& input, const Tensor& masks, const Tensor& values, const Tensor& offsets,
                     const Tensor& sums, const Tensor& scales, const std::optional<Tensor>& bias) {
  const Outputs outputs(sums, scales, bias);
  const std::int64_t inputs = inputs_of(input, outputs);
  return run_sparse<kernels::BitmapWeights>(input, masks, values, offsets, outputs,
                                            kernels::bitmap_masks(outputs.count, inputs),
                                            kernels::panels_of(outputs.count), kernels::kVector, 1);
}

Tensor block4_linear(const Tensor& input, const Tensor& masks, const Tensor& values, const Tensor& offsets,
                     const Tensor& sums, const Tensor& scales, const std::optional<Tensor>& bias) {
  const Outputs outputs(sums, scales, bias);
  const std::int64_t inputs = inputs_of(input, outputs);
  return run_sparse<kernels::BlockWeights>(input, masks, values, offsets, outputs,
                                           outputs.count * kernels::block_words(inputs), outputs.count, kernels::kGroup,
                                           0);
}

}  // namespace
}  // namespace mempool

STABLE_TORCH_LIBRARY_FRAGMENT(mempool, m) {
  m.def("int8_linear(Tensor input, Tensor panels, Tensor sums, Tensor scales, Tensor? bias=None) -> Tensor");
  m.def(
      "bitmap_linear(Tensor input, Tensor masks, Tensor values, Tensor offsets, Tensor sums, Tensor scales, "
      "Tensor? bias=None) -> Tensor");
  m.def(
      "block4_linear(Tensor input, Tensor masks, Tensor values, Tensor offsets, Tensor sums, Tensor scales, "
      "Tensor? bias=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mempool, CPU, m) {
  m.impl("int8_linear", TORCH_BOX(&mempool::int8_linear));
  m.impl("bitmap_linear", TORCH_BOX(&mempool::bitmap_linear));
  m.impl("block4_linear", TORCH_BOX(&mempool::block4_linear));
}
