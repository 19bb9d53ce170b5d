// The operators that quantize, pack, unpack and check weights. They run when a model is converted or loaded, on one
// thread.
#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include <string>
#include <tuple>

#include "kernels/quantize_weights.h"
#include "torch/format_ops.h"

namespace mempool {
namespace {

Tensor empty_of(ScalarType type, at::IntArrayRef shape) { return at::detail::empty_cpu(shape, type); }

template <typename Value>
Value* data(const Tensor& tensor) {
  return static_cast<Value*>(tensor.mutable_data_ptr());
}
template <typename Value>
const Value* read(const Tensor& tensor) {
  return static_cast<const Value*>(tensor.const_data_ptr());
}

struct Weight {
  Weight(const Tensor& tensor, ScalarType type) {
    require_plain(tensor, "weight", {type});
    if (tensor.dim() != 2) refuse("`weight` has " + std::to_string(tensor.dim()) + " dimensions, and has to have 2.");
    outputs = tensor.size(0);
    inputs = tensor.size(1);
    require_shape(outputs, inputs);
  }
  std::int64_t outputs;
  std::int64_t inputs;
};

std::tuple<Tensor, Tensor> quantize_weight(const Tensor& weight) {
  const Weight shape(weight, ScalarType::Float);
  Tensor quantized = empty_of(ScalarType::Char, {shape.outputs, shape.inputs});
  Tensor scales = empty_of(ScalarType::Float, {shape.outputs});
  const std::int64_t row = kernels::quantize_weights(read<float>(weight), shape.outputs, shape.inputs,
                                                     data<std::int8_t>(quantized), data<float>(scales));
  if (row >= 0) refuse("`weight` has a NaN or an infinite value in row " + std::to_string(row) + ".");
  return {quantized, scales};
}

// The operators pack_NAME, unpack_NAME and check_NAME of a format.
template <typename Format, typename Indexes = std::make_index_sequence<kBuffers<Format>>>
struct PackingOf;

template <typename Format, std::size_t... index>
struct PackingOf<Format, std::index_sequence<index...>> {
  using Buffers = BuffersOf<Format>;
  using Weights = typename Format::Weights;
  template <std::size_t i>
  using Argument = typename Buffers::template Argument<i>;

  static std::tuple<typename Buffers::template Result<index>..., Tensor> pack(const Tensor& weight) {
    const Weight shape(weight, ScalarType::Char);
    const auto* const from = read<std::int8_t>(weight);
    auto sizes = Format::sizes(shape.outputs, shape.inputs);
    if constexpr (IsMeasured<Format>) {
      for (std::int64_t& size : sizes) {
        if (size == kernels::kMeasured) size = Format::measure(from, shape.outputs, shape.inputs);
      }
    }
    const std::array<Tensor, kBuffers<Format>> buffers = {empty<ValueOf<Format, index>>(sizes[index])...};
    const Tensor sums = empty<std::int32_t>(shape.outputs);
    const bool fits = Format::pack(from, shape.outputs, shape.inputs, data<ValueOf<Format, index>>(buffers[index])...,
                                   data<std::int32_t>(sums));
    if constexpr (requires { Format::kMisfit; }) {
      if (!fits) refuse(Format::kMisfit);
    }
    return {buffers[index]..., sums};
  }

  static Tensor unpack(Argument<index>... buffers, const Tensor& sums, std::int64_t outputs, std::int64_t inputs) {
    return unpacked(sound(buffers..., sums, outputs, inputs));
  }
  static Tensor unpack_anything(Argument<index>... buffers, std::int64_t outputs, std::int64_t inputs) {
    require_shape(outputs, inputs);
    return unpacked(Buffers::weights_of(buffers..., outputs, inputs, c10::kCPU));
  }

  static void check(Argument<index>... buffers, const Tensor& sums, std::int64_t outputs, std::int64_t inputs) {
    sound(buffers..., sums, outputs, inputs);
  }

 private:
  template <typename Value>
  static Tensor empty(std::int64_t size) {
    constexpr std::int64_t kElements = kTypeOf<Value> == ScalarType::Byte ? sizeof(Value) : 1;
    return empty_of(kTypeOf<Value>, {size * kElements});
  }

  static Tensor unpacked(const Weights& weights) {
    Tensor weight = empty_of(ScalarType::Char, {weights.outputs, weights.inputs});
    Format::unpack(weights, data<std::int8_t>(weight));
    return weight;
  }

  static Weights sound(Argument<index>... buffers, const Tensor& sums, std::int64_t outputs, std::int64_t inputs) {
    require_shape(outputs, inputs);
    Weights weights = Buffers::weights_of(buffers..., outputs, inputs, c10::kCPU);
    require_plain(sums, "sums", {ScalarType::Int}, sizeof(std::int32_t));
    require_elements(sums, "sums", outputs);
    weights.sums = read<std::int32_t>(sums);
    if (!Buffers::is_sound(buffers..., weights)) {
      refuse("the buffers of this weight of " + std::to_string(outputs) + " outputs and " + std::to_string(inputs) +
             " inputs do not fit each other: it was damaged, or belongs to another shape.");
    }
    return weights;
  }
};

template <typename Format>
void define(torch::Library& library) {
  const std::string buffers = buffer_arguments<Format>();
  std::string packed = "Tensor";
  for (std::size_t i = 0; i < kBuffers<Format>; ++i) packed += ", Tensor";
  const std::string sums = Format::kReadsAnything ? "" : "Tensor sums, ";
  library.def((pack_name<Format>() + "(Tensor weight) -> (" + packed + ")").c_str());
  library.def((unpack_name<Format>() + "(" + buffers + sums + "int outputs, int inputs) -> Tensor").c_str());
  library.def((check_name<Format>() + "(" + buffers + "Tensor sums, int outputs, int inputs) -> ()").c_str());
}

template <typename Format>
void implement(torch::Library& library) {
  using Packing = PackingOf<Format>;
  library.impl(pack_name<Format>().c_str(), &Packing::pack);
  library.impl(check_name<Format>().c_str(), &Packing::check);
  if constexpr (Format::kReadsAnything) {
    library.impl(unpack_name<Format>().c_str(), &Packing::unpack_anything);
  } else {
    library.impl(unpack_name<Format>().c_str(), &Packing::unpack);
  }
}

}  // namespace
}  // namespace mempool

TORCH_LIBRARY_FRAGMENT(mempool, m) {
  m.def("quantize_weight(Tensor weight) -> (Tensor, Tensor)");
  mempool::kernels::AllFormats::each([&m]<typename Format>(Format) { mempool::define<Format>(m); });
}

TORCH_LIBRARY_IMPL(mempool, CPU, m) {
  m.impl("quantize_weight", &mempool::quantize_weight);
  mempool::kernels::AllFormats::each([&m]<typename Format>(Format) { mempool::implement<Format>(m); });
}
