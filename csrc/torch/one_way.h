// Operators without a gradient. The error is raised when a backward pass runs, not when it is traced: torch.compile
// traces a backward pass of an inference model, too, unless it runs under no_grad.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace mempool {

using at::Tensor;

class OneWay : public torch::autograd::Function<OneWay> {
 public:
  template <typename Compute>
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& input, const Compute& compute) {
    context->save_for_backward({input});
    return compute();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("mempool::refuse_backward", "")
                               .typed<Tensor(const Tensor&, const Tensor&)>();
    return {op.call(gradients[0], context->get_saved_variables()[0]), Tensor()};
  }
};

// call() is the autograd kernel of `Operator` (its name and signature), whose first argument may require a gradient.
template <typename Operator, typename Signature = typename Operator::Signature>
struct OneWayOf;
template <typename Operator, typename... Arguments>
struct OneWayOf<Operator, Tensor(const Tensor&, Arguments...)> {
  static Tensor call(const Tensor& input, Arguments... arguments) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow(Operator::name().c_str(), "")
                               .template typed<Tensor(const Tensor&, Arguments...)>();
    const auto compute = [&] {
      const at::AutoDispatchBelowADInplaceOrView guard;
      return op.call(input, arguments...);
    };
    return at::GradMode::is_enabled() && input.requires_grad() ? OneWay::apply(input, compute) : compute();
  }
};

}  // namespace mempool
