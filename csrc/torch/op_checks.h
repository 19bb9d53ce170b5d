// The checks of the operators' tensors, before a kernel gets a pointer. A refusal is a RuntimeError, as torch's own
// operators raise; it names the argument, what it is and what it has to be.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "kernels/weights.h"

namespace mempool {

using at::Tensor;
using c10::ScalarType;

[[noreturn]] inline void refuse(const std::string& message) { C10_THROW_ERROR(Error, "mempool: " + message); }

// The name of a type, as Python writes it.
inline std::string name_of(ScalarType type) { return std::string(c10::getDtypeNames(type).first); }

inline void require_type(const Tensor& tensor, const char* name, std::initializer_list<ScalarType> types) {
  std::string wanted;
  for (const ScalarType type : types) {
    if (tensor.scalar_type() == type) return;
    wanted += (wanted.empty() ? "" : " or ") + name_of(type);
  }
  refuse(std::string("`") + name + "` has to be " + wanted + ", and is " + name_of(tensor.scalar_type()) + ".");
}

// Requires a contiguous tensor on a device, of one of the types, aligned to `alignment` bytes.
inline void require_plain(const Tensor& tensor, const char* name, std::initializer_list<ScalarType> types,
                          std::size_t alignment = 1, c10::Device device = c10::kCPU) {
  const std::string quoted = std::string("`") + name + "`";
  if (tensor.device() != device) {
    refuse(quoted + " has to be on " + (device.is_cpu() ? "the CPU" : device.str()) + ", and is on " +
           tensor.device().str() + ": all arguments have to be on one device.");
  }
  require_type(tensor, name, types);
  if (!tensor.is_contiguous()) refuse(quoted + " has to be contiguous.");
  if (reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % alignment != 0) {
    refuse(quoted + " has to begin at a multiple of " + std::to_string(alignment) +
           " bytes: it is a slice of another tensor, clone it.");
  }
}

inline void require_elements(const Tensor& tensor, const char* name, std::int64_t count) {
  if (tensor.numel() == count) return;
  refuse(std::string("`") + name + "` has " + std::to_string(tensor.numel()) + " elements, and " +
         std::to_string(count) + " belong to this shape.");
}

inline void require_shape(std::int64_t outputs, std::int64_t inputs) {
  if (outputs < 0 || inputs < 1 || inputs > kernels::kMostInputs) {
    refuse("a weight has 1 to " + std::to_string(kernels::kMostInputs) +
           " inputs, else its int32 sums could overflow; " + "asked for " + std::to_string(outputs) + " outputs and " +
           std::to_string(inputs) + " inputs. Split the layer along its inputs.");
  }
  if (outputs > INT32_MAX / kernels::groups_of(inputs)) {
    refuse("a weight of " + std::to_string(outputs) + " outputs and " + std::to_string(inputs) +
           " inputs has more blocks than int32 counts. Split the layer along its outputs.");
  }
}

// The tensors that layers of all formats have: a sum and a scale for each output, and a bias for each if there are any.
struct Outputs {
  Outputs(const Tensor& sums_in, const Tensor& scales_in, const std::optional<Tensor>& bias_in,
          c10::Device device = c10::kCPU) {
    require_plain(scales_in, "scales", {ScalarType::Float}, sizeof(float), device);
    count = scales_in.numel();
    require_plain(sums_in, "sums", {ScalarType::Int}, sizeof(std::int32_t), device);
    require_elements(sums_in, "sums", count);
    sums = static_cast<const std::int32_t*>(sums_in.const_data_ptr());
    if (bias_in) {
      require_plain(*bias_in, "bias", {ScalarType::Float}, sizeof(float), device);
      require_elements(*bias_in, "bias", count);
      bias = static_cast<const float*>(bias_in->const_data_ptr());
    }
    scales = static_cast<const float*>(scales_in.const_data_ptr());
  }
  std::int64_t count;
  const std::int32_t* sums;
  const float* scales;
  const float* bias = nullptr;
};

inline void require_inputs(const Tensor& input, const Outputs& outputs, std::int64_t inputs) {
  require_shape(outputs.count, inputs);
  if (input.dim() < 1) refuse("`input` has to have a last dimension, the inputs of the layer.");
  if (input.size(-1) != inputs) {
    refuse("the last dimension of `input` is " + std::to_string(input.size(-1)) + ", and the layer has " +
           std::to_string(inputs) + " inputs.");
  }
}

}  // namespace mempool
