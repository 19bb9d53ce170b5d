// The operators that run packed weights on the CPU: torch.ops.mempool.int8_linear, and one for each other format.
//
// They are not built on torch's stable interface (torch/csrc/stable): that one turns each exception of an allocation
// into a plain RuntimeError, and prints it. An out-of-memory error has to reach Python as one.
#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include <cstring>
#include <optional>

#include "kernels/linear.h"
#include "torch/format_ops.h"
#include "torch/one_way.h"
#include "torch/threads.h"

namespace mempool {
namespace {

using kernels::Activations;
using kernels::Output;
using kernels::OutputType;

// The memory for quantized activations: for a few tokens on the stack, else from torch, and so from the current pool.
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

struct OnCpu {
  template <typename Format>
  static c10::Device device_of(const Tensor& /*input*/) {
    if constexpr (requires { Format::kNotOnCpu; }) refuse(Format::kNotOnCpu);
    return c10::kCPU;
  }

  template <typename Format>
  static Tensor run(const Tensor& input, const typename Format::Weights& weights, const float* bias) {
    if constexpr (requires { Format::kNotOnCpu; }) {
      refuse(Format::kNotOnCpu);
    } else {
      return multiplied(input, weights, bias);
    }
  }

 private:
  template <typename Weights>
  static Tensor multiplied(const Tensor& input, const Weights& weights, const float* bias) {
    if (!input.is_cpu()) refuse("`input` has to be on the CPU, as the weights are.");
    require_type(input, "input", {ScalarType::Float, ScalarType::BFloat16});
    const c10::MaybeOwned<Tensor> rows = input.expect_contiguous();
    c10::DimVector shape(input.sizes());
    shape.back() = weights.outputs;
    Tensor output = at::detail::empty_cpu(shape, input.scalar_type());
    const std::int64_t count = input.numel() / weights.inputs;
    if (count == 0 || weights.outputs == 0) return output;
    Workspace workspace(kernels::workspace_bytes(weights, count));
    const bool is_bfloat16 = input.scalar_type() == ScalarType::BFloat16;
    const Output to = {output.mutable_data_ptr(), bias, is_bfloat16 ? OutputType::bfloat16 : OutputType::float32};
    kernels::linear(*kernels::kernels_of(kernels::current_isa()), weights,
                    Activations{rows->const_data_ptr(), count, is_bfloat16}, to, workspace.data(), parallel_for);
    return output;
  }
};

// No gradient flows back through a packed weight. The error is raised when a backward pass runs, not when it is traced:
// torch.compile traces a backward pass of an inference model, too, unless it runs under no_grad.
Tensor refuse_backward(const Tensor& /*gradient*/, const Tensor& /*input*/) {
  refuse(
      "packed weights are for inference, nothing flows back through them. Train the model before it is converted "
      "(prune_(..., keep_masks=True) keeps its zeros), or run this part under torch.no_grad().");
}

// An operator's name and signature, for OneWayOf.
template <typename Format>
struct LinearOperator {
  using Signature = decltype(LinearOf<OnCpu, Format>::call);
  static std::string name() { return "mempool::" + linear_name<Format>(); }
};

}  // namespace
}  // namespace mempool

TORCH_LIBRARY_FRAGMENT(mempool, m) {
  m.def("refuse_backward(Tensor gradient, Tensor input) -> Tensor");
  mempool::kernels::AllFormats::each(
      [&m]<typename Format>(Format) { m.def(mempool::linear_schema<Format>().c_str()); });
}

TORCH_LIBRARY_IMPL(mempool, CompositeExplicitAutograd, m) { m.impl("refuse_backward", &mempool::refuse_backward); }

TORCH_LIBRARY_IMPL(mempool, CPU, m) {
  mempool::kernels::AllFormats::each([&m]<typename Format>(Format) {
    m.impl(mempool::linear_name<Format>().c_str(), &mempool::LinearOf<mempool::OnCpu, Format>::call);
  });
}

TORCH_LIBRARY_IMPL(mempool, Autograd, m) {
  mempool::kernels::AllFormats::each([&m]<typename Format>(Format) {
    m.impl(mempool::linear_name<Format>().c_str(), &mempool::OneWayOf<mempool::LinearOperator<Format>>::call);
  });
}
