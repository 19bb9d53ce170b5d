// The operators that run packed weights: torch.ops.mempool.int8_linear, bitmap_linear and block4_linear.
//
// They are not built on torch's stable interface (torch/csrc/stable): that one turns whatever an allocation throws into
// a plain RuntimeError, and prints it. Out of memory has to reach Python as what it is.
#include <ATen/EmptyTensor.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/library.h>

#include <cstring>
#include <optional>

#include "kernels/linear.h"
#include "torch/one_way.h"
#include "torch/op_checks.h"

namespace mempool {
namespace {

using kernels::Activations;
using kernels::Output;
using kernels::OutputType;

struct Work {
  kernels::Task task;
  const void* context;
};

// torch's threads. By a function of torch's library: at::parallel_for is compiled where it is called, and without
// OpenMP there it would quietly run on one thread.
void parallel_for(std::int64_t count, std::int64_t grain, kernels::Task task, const void* context) {
  Work work = {task, context};
  const auto run = [](std::int64_t first, std::int64_t last, void* given) {
    const Work& to_do = *static_cast<const Work*>(given);
    to_do.task(to_do.context, first, last);
  };
  if (torch_parallel_for(0, count, grain, run, &work) != 0) refuse("torch's threads could not be started.");
}

// Where activations are quantized to: for a few tokens the stack, else memory from torch, and so from the current pool.
class Workspace {
 public:
  explicit Workspace(std::int64_t bytes) {
    if (bytes > static_cast<std::int64_t>(sizeof(small_))) large_ = at::detail::empty_cpu({bytes}, ScalarType::Byte);
  }
  void* data() { return large_.defined() ? large_.mutable_data_ptr() : small_; }

 private:
  alignas(64) std::uint8_t small_[32 * 1024];
  Tensor large_;
};

template <typename Weights>
Tensor run(const Tensor& input, const Weights& weights, const Outputs& outputs) {
  if (!input.is_cpu()) refuse("`input` has to be on the CPU, as the weights are.");
  require_type(input, "input", {ScalarType::Float, ScalarType::BFloat16});
  const c10::MaybeOwned<Tensor> rows = input.expect_contiguous();
  c10::DimVector shape(input.sizes());
  shape.back() = outputs.count;
  Tensor output = at::detail::empty_cpu(shape, input.scalar_type());
  const std::int64_t count = input.numel() / weights.inputs;
  if (count == 0 || outputs.count == 0) return output;
  Workspace workspace(kernels::workspace_bytes(weights, count));
  const bool is_bfloat16 = input.scalar_type() == ScalarType::BFloat16;
  const Output to = {output.mutable_data_ptr(), outputs.bias, is_bfloat16 ? OutputType::bfloat16 : OutputType::float32};
  kernels::linear(*kernels::kernels_of(kernels::current_isa()), weights,
                  Activations{rows->const_data_ptr(), count, is_bfloat16}, to, workspace.data(), parallel_for);
  return output;
}

Tensor int8_linear(const Tensor& input, const Tensor& panels, const Tensor& sums, const Tensor& scales,
                   const std::optional<Tensor>& bias, std::int64_t inputs) {
  const Outputs outputs(sums, scales, bias);
  require_inputs(input, outputs, inputs);
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
                     outputs.count, input.size(-1)},
             outputs);
}

Tensor bitmap_linear(const Tensor& input, const Tensor& masks, const Tensor& values, const Tensor& offsets,
                     const Tensor& sums, const Tensor& scales, const std::optional<Tensor>& bias, std::int64_t inputs) {
  const Outputs outputs(sums, scales, bias);
  require_inputs(input, outputs, inputs);
  return run_sparse<kernels::BitmapWeights>(input, masks, values, offsets, outputs,
                                            kernels::bitmap_masks(outputs.count, inputs),
                                            kernels::panels_of(outputs.count), kernels::kVector, 1);
}

Tensor block4_linear(const Tensor& input, const Tensor& masks, const Tensor& values, const Tensor& offsets,
                     const Tensor& sums, const Tensor& scales, const std::optional<Tensor>& bias, std::int64_t inputs) {
  const Outputs outputs(sums, scales, bias);
  require_inputs(input, outputs, inputs);
  return run_sparse<kernels::BlockWeights>(input, masks, values, offsets, outputs,
                                           outputs.count * kernels::block_words(inputs), outputs.count, kernels::kGroup,
                                           0);
}

// Sparse tensor cores alone take 2:4 weights.
Tensor sparse24_linear(const Tensor& /*input*/, const Tensor& /*values*/, const Tensor& /*places*/,
                       const Tensor& /*sums*/, const Tensor& /*scales*/, const std::optional<Tensor>& /*bias*/,
                       std::int64_t /*inputs*/) {
  refuse(
      "2:4 weights run on a GPU alone: move the layer and its input with .to(\"cuda\"), or make it one that the CPU "
      "runs with layer.repacked() or mempool.compress.convert(model).");
}

// Nothing flows back through a packed weight. That is said when a backward pass runs, not when it is traced: whoever
// compiles a model for inference without saying so has a backward pass traced.
Tensor refuse_backward(const Tensor& /*gradient*/, const Tensor& /*input*/) {
  refuse(
      "packed weights are for inference, nothing flows back through them. Train the model before it is converted "
      "(prune_(..., keep_masks=True) keeps its zeros), or run this part under torch.no_grad().");
}

constexpr char kInt8Linear[] = "mempool::int8_linear";
constexpr char kBitmapLinear[] = "mempool::bitmap_linear";
constexpr char kBlock4Linear[] = "mempool::block4_linear";
constexpr char kSparse24Linear[] = "mempool::sparse24_linear";

}  // namespace
}  // namespace mempool

TORCH_LIBRARY_FRAGMENT(mempool, m) {
  m.def("refuse_backward(Tensor gradient, Tensor input) -> Tensor");
  m.def("int8_linear(Tensor input, Tensor panels, Tensor sums, Tensor scales, Tensor? bias, int inputs) -> Tensor");
  m.def(
      "bitmap_linear(Tensor input, Tensor masks, Tensor values, Tensor offsets, Tensor sums, Tensor scales, "
      "Tensor? bias, int inputs) -> Tensor");
  m.def(
      "block4_linear(Tensor input, Tensor masks, Tensor values, Tensor offsets, Tensor sums, Tensor scales, "
      "Tensor? bias, int inputs) -> Tensor");
  m.def(
      "sparse24_linear(Tensor input, Tensor values, Tensor places, Tensor sums, Tensor scales, Tensor? bias, "
      "int inputs) -> Tensor");
}

TORCH_LIBRARY_IMPL(mempool, CompositeExplicitAutograd, m) { m.impl("refuse_backward", &mempool::refuse_backward); }

TORCH_LIBRARY_IMPL(mempool, CPU, m) {
  m.impl("int8_linear", &mempool::int8_linear);
  m.impl("bitmap_linear", &mempool::bitmap_linear);
  m.impl("block4_linear", &mempool::block4_linear);
  m.impl("sparse24_linear", &mempool::sparse24_linear);
}

TORCH_LIBRARY_IMPL(mempool, Autograd, m) {
  using mempool::OneWayOf;
  m.impl("int8_linear", &OneWayOf<mempool::kInt8Linear, decltype(mempool::int8_linear)>::call);
  m.impl("bitmap_linear", &OneWayOf<mempool::kBitmapLinear, decltype(mempool::bitmap_linear)>::call);
  m.impl("block4_linear", &OneWayOf<mempool::kBlock4Linear, decltype(mempool::block4_linear)>::call);
  m.impl("sparse24_linear", &OneWayOf<mempool::kSparse24Linear, decltype(mempool::sparse24_linear)>::call);
}
