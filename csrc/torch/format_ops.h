// Makes the operators of a packed format from its traits (kernels/formats/format.h): their names, schemas and
// signatures, and the checks of their tensors. pack_ops.cpp, linear_ops.cpp and cuda_linear_ops.cpp register them for
// every format.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "kernels/formats/formats.h"
#include "torch/op_checks.h"

namespace mempool {

template <typename Format>
inline constexpr std::size_t kBuffers = std::tuple_size_v<decltype(Format::kBuffers)>;
template <typename Format, std::size_t index>
using ValueOf = typename std::tuple_element_t<index, decltype(Format::kBuffers)>::Value;
template <typename Value>
inline constexpr ScalarType kTypeOf = sizeof(Value) == sizeof(std::int32_t) ? ScalarType::Int : ScalarType::Byte;

template <typename Format>
concept IsMeasured = requires(const typename Format::Weights& packed) { Format::measured(packed); };

template <typename Format>
std::string pack_name() {
  return std::string("pack_") + Format::kName;
}
template <typename Format>
std::string unpack_name() {
  return std::string("unpack_") + Format::kName;
}
template <typename Format>
std::string check_name() {
  return std::string("check_") + Format::kName;
}
template <typename Format>
std::string linear_name() {
  return std::string(Format::kName) + "_linear";
}

// "Tensor masks, Tensor values, "
template <typename Format>
std::string buffer_arguments() {
  return std::apply([](const auto&... buffer) { return (("Tensor " + std::string(buffer.name) + ", ") + ...); },
                    Format::kBuffers);
}

// The functions that take the buffers of a format as arguments, a tensor for each index.
template <typename Format, typename Indexes = std::make_index_sequence<kBuffers<Format>>>
struct BuffersOf;

template <typename Format, std::size_t... index>
struct BuffersOf<Format, std::index_sequence<index...>> {
  using Weights = typename Format::Weights;
  template <std::size_t>
  using Argument = const Tensor&;
  template <std::size_t>
  using Result = Tensor;

  // The weight as its kernels take it, without sums and scales. Checks the type, device, alignment and size of each
  // buffer; is_sound() checks that they fit each other.
  static Weights weights_of(Argument<index>... buffers, std::int64_t outputs, std::int64_t inputs, c10::Device device) {
    Weights weights;
    weights.outputs = outputs;
    weights.inputs = inputs;
    const auto sizes = Format::sizes(outputs, inputs);
    (attach(weights, std::get<index>(Format::kBuffers), buffers, sizes[index], device), ...);
    return weights;
  }

  static void require_measured(Argument<index>... buffers, const Weights& weights) {
    const auto sizes = Format::sizes(weights.outputs, weights.inputs);
    const auto require = [&](const char* name, const Tensor& tensor, std::int64_t size) {
      if (size == kernels::kMeasured) require_elements(tensor, name, Format::measured(weights));
    };
    (require(std::get<index>(Format::kBuffers).name, buffers, sizes[index]), ...);
  }

  static bool is_sound(Argument<index>... buffers, const Weights& weights) {
    if constexpr (IsMeasured<Format>) {
      const auto sizes = Format::sizes(weights.outputs, weights.inputs);
      const std::int64_t measured = ((sizes[index] == kernels::kMeasured ? buffers.numel() : 0) + ...);
      return Format::is_sound(weights, measured);
    } else {
      return Format::is_sound(weights);
    }
  }

 private:
  template <typename Value>
  static void attach(Weights& weights, const kernels::Buffer<Weights, Value>& buffer, const Tensor& tensor,
                     std::int64_t size, c10::Device device) {
    const std::size_t alignment = device.is_cpu() ? alignof(Value) : buffer.gpu_alignment;
    require_plain(tensor, buffer.name, {kTypeOf<Value>}, alignment, device);
    if (size != kernels::kMeasured) {
      constexpr std::int64_t kElements = kTypeOf<Value> == ScalarType::Byte ? sizeof(Value) : 1;
      require_elements(tensor, buffer.name, size * kElements);
    }
    weights.*buffer.member = static_cast<const Value*>(tensor.const_data_ptr());
  }
};

template <typename Format>
std::string linear_schema() {
  return linear_name<Format>() + "(Tensor input, " + buffer_arguments<Format>() +
         "Tensor sums, Tensor scales, Tensor? bias, int inputs) -> Tensor";
}

// The operator NAME_linear: call() checks its arguments. `Device` names the device that the buffers have to be on, and
// runs the layer there.
template <typename Device, typename Format, typename Indexes = std::make_index_sequence<kBuffers<Format>>>
struct LinearOf;

template <typename Device, typename Format, std::size_t... index>
struct LinearOf<Device, Format, std::index_sequence<index...>> {
  using Buffers = BuffersOf<Format>;

  static Tensor call(const Tensor& input, typename Buffers::template Argument<index>... buffers, const Tensor& sums,
                     const Tensor& scales, const std::optional<Tensor>& bias, std::int64_t inputs) {
    const c10::Device device = Device::template device_of<Format>(input);
    const Outputs outputs(sums, scales, bias, device);
    require_inputs(input, outputs, inputs);
    typename Format::Weights weights = Buffers::weights_of(buffers..., outputs.count, inputs, device);
    weights.sums = outputs.sums;
    weights.scales = outputs.scales;
    // On a GPU each call would have to wait for the answer; modules ask once, when buffers are loaded. Whether masks
    // fit offsets is not checked here either: reading every mask would cost as much as the product.
    if constexpr (IsMeasured<Format>) {
      if (device.is_cpu()) Buffers::require_measured(buffers..., weights);
    }
    return Device::template run<Format>(input, weights, outputs.bias);
  }
};

}  // namespace mempool
