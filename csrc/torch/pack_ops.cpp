// The operators that make packed weights and take them apart. They run when a model is converted or loaded, on one
// thread.
#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include <string>
#include <tuple>

#include "kernels/pack.h"
#include "torch/op_checks.h"

namespace mempool {
namespace {

using kernels::BitmapWeights;
using kernels::BlockWeights;
using kernels::Sparse24Weights;

constexpr std::int64_t kWord = sizeof(std::uint64_t);

Tensor bytes(std::int64_t count) { return at::detail::empty_cpu({count}, ScalarType::Byte); }
Tensor ints(std::int64_t count) { return at::detail::empty_cpu({count}, ScalarType::Int); }
Tensor weight_of(std::int64_t outputs, std::int64_t inputs) {
  return at::detail::empty_cpu({outputs, inputs}, ScalarType::Char);
}

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
  Tensor quantized = weight_of(shape.outputs, shape.inputs);
  Tensor scales = at::detail::empty_cpu({shape.outputs}, ScalarType::Float);
  const std::int64_t row = kernels::quantize_weights(read<float>(weight), shape.outputs, shape.inputs,
                                                     data<std::int8_t>(quantized), data<float>(scales));
  if (row >= 0) refuse("`weight` has a NaN or an infinite value in row " + std::to_string(row) + ".");
  return {quantized, scales};
}

std::tuple<Tensor, Tensor> pack_int8(const Tensor& weight) {
  const Weight shape(weight, ScalarType::Char);
  Tensor panels = bytes(kernels::dense_bytes(shape.outputs, shape.inputs));
  Tensor sums = ints(shape.outputs);
  kernels::pack_dense(read<std::int8_t>(weight), shape.outputs, shape.inputs, data<std::int8_t>(panels),
                      data<std::int32_t>(sums));
  return {panels, sums};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pack_bitmap(const Tensor& weight) {
  const Weight shape(weight, ScalarType::Char);
  Tensor offsets = ints(kernels::panels_of(shape.outputs) + 1);
  const std::int64_t size =
      kernels::measure_bitmap(read<std::int8_t>(weight), shape.outputs, shape.inputs, data<std::int32_t>(offsets));
  Tensor masks = bytes(kernels::bitmap_masks(shape.outputs, shape.inputs) * kWord);
  Tensor values = bytes(size);
  Tensor sums = ints(shape.outputs);
  kernels::pack_bitmap(read<std::int8_t>(weight), shape.outputs, shape.inputs, read<std::int32_t>(offsets),
                       data<std::uint64_t>(masks), data<std::int8_t>(values), data<std::int32_t>(sums));
  return {masks, values, offsets, sums};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pack_block4(const Tensor& weight) {
  const Weight shape(weight, ScalarType::Char);
  Tensor offsets = ints(shape.outputs + 1);
  const std::int64_t blocks =
      kernels::measure_block4(read<std::int8_t>(weight), shape.outputs, shape.inputs, data<std::int32_t>(offsets));
  Tensor masks = bytes(shape.outputs * kernels::block_words(shape.inputs) * kWord);
  Tensor values = bytes(blocks * kernels::kGroup);
  Tensor sums = ints(shape.outputs);
  kernels::pack_block4(read<std::int8_t>(weight), shape.outputs, shape.inputs, read<std::int32_t>(offsets),
                       data<std::uint64_t>(masks), data<std::int8_t>(values), data<std::int32_t>(sums));
  return {masks, values, offsets, sums};
}

std::tuple<Tensor, Tensor, Tensor> pack_sparse24(const Tensor& weight) {
  const Weight shape(weight, ScalarType::Char);
  Tensor values = bytes(kernels::sparse24_values(shape.outputs, shape.inputs));
  Tensor places = ints(kernels::sparse24_places(shape.outputs, shape.inputs));
  Tensor sums = ints(shape.outputs);
  if (!kernels::pack_sparse24(read<std::int8_t>(weight), shape.outputs, shape.inputs, data<std::int8_t>(values),
                              data<std::uint32_t>(places), data<std::int32_t>(sums))) {
    refuse("four inputs of an output have more than two weights that are not zero: prune it with pattern=\"2:4\".");
  }
  return {values, places, sums};
}

Tensor unpack_int8(const Tensor& panels, std::int64_t outputs, std::int64_t inputs) {
  require_shape(outputs, inputs);
  require_plain(panels, "panels", {ScalarType::Byte});
  require_elements(panels, "panels", kernels::dense_bytes(outputs, inputs));
  Tensor weight = weight_of(outputs, inputs);
  kernels::unpack_dense(read<std::int8_t>(panels), outputs, inputs, data<std::int8_t>(weight));
  return weight;
}

[[noreturn]] void refuse_damaged(std::int64_t outputs, std::int64_t inputs) {
  refuse("the buffers of this weight of " + std::to_string(outputs) + " outputs and " + std::to_string(inputs) +
         " inputs do not fit each other: it was damaged, or belongs to another shape.");
}

void check_int8(const Tensor& panels, const Tensor& sums, std::int64_t outputs, std::int64_t inputs) {
  require_shape(outputs, inputs);
  require_plain(panels, "panels", {ScalarType::Byte});
  require_elements(panels, "panels", kernels::dense_bytes(outputs, inputs));
  require_plain(sums, "sums", {ScalarType::Int}, sizeof(std::int32_t));
  require_elements(sums, "sums", outputs);
  if (!kernels::is_sound({read<std::int8_t>(panels), read<std::int32_t>(sums), nullptr, outputs, inputs})) {
    refuse_damaged(outputs, inputs);
  }
}

// The buffers as the kernels' type, once they are sound.
template <typename Weights>
Weights sound(const Tensor& masks, const Tensor& values, const Tensor& offsets, const Tensor& sums, std::int64_t words,
              std::int64_t rows, std::int64_t outputs, std::int64_t inputs) {
  require_plain(masks, "masks", {ScalarType::Byte}, kWord);
  require_elements(masks, "masks", words * kWord);
  require_plain(offsets, "offsets", {ScalarType::Int}, sizeof(std::int32_t));
  require_elements(offsets, "offsets", rows + 1);
  require_plain(values, "values", {ScalarType::Byte});
  require_plain(sums, "sums", {ScalarType::Int}, sizeof(std::int32_t));
  require_elements(sums, "sums", outputs);
  const Weights weights = {read<std::uint64_t>(masks),
                           read<std::int8_t>(values),
                           read<std::int32_t>(offsets),
                           read<std::int32_t>(sums),
                           nullptr,
                           outputs,
                           inputs};
  if (!kernels::is_sound(weights, values.numel())) refuse_damaged(outputs, inputs);
  return weights;
}

BitmapWeights sound_bitmap(const Tensor& masks, const Tensor& values, const Tensor& offsets, const Tensor& sums,
                           std::int64_t outputs, std::int64_t inputs) {
  require_shape(outputs, inputs);
  return sound<BitmapWeights>(masks, values, offsets, sums, kernels::bitmap_masks(outputs, inputs),
                              kernels::panels_of(outputs), outputs, inputs);
}
BlockWeights sound_block4(const Tensor& masks, const Tensor& values, const Tensor& offsets, const Tensor& sums,
                          std::int64_t outputs, std::int64_t inputs) {
  require_shape(outputs, inputs);
  return sound<BlockWeights>(masks, values, offsets, sums, outputs * kernels::block_words(inputs), outputs, outputs,
                             inputs);
}

Sparse24Weights sound_sparse24(const Tensor& values, const Tensor& places, const Tensor& sums, std::int64_t outputs,
                               std::int64_t inputs) {
  require_shape(outputs, inputs);
  require_plain(values, "values", {ScalarType::Byte});
  require_elements(values, "values", kernels::sparse24_values(outputs, inputs));
  require_plain(places, "places", {ScalarType::Int}, sizeof(std::uint32_t));
  require_elements(places, "places", kernels::sparse24_places(outputs, inputs));
  require_plain(sums, "sums", {ScalarType::Int}, sizeof(std::int32_t));
  require_elements(sums, "sums", outputs);
  const Sparse24Weights weights = {
      read<std::int8_t>(values), read<std::uint32_t>(places), read<std::int32_t>(sums), nullptr, outputs, inputs};
  if (!kernels::is_sound(weights)) refuse_damaged(outputs, inputs);
  return weights;
}

Tensor unpack_bitmap(const Tensor& masks, const Tensor& values, const Tensor& offsets, const Tensor& sums,
                     std::int64_t outputs, std::int64_t inputs) {
  const BitmapWeights weights = sound_bitmap(masks, values, offsets, sums, outputs, inputs);
  Tensor weight = weight_of(outputs, inputs);
  kernels::unpack_bitmap(weights, data<std::int8_t>(weight));
  return weight;
}
Tensor unpack_block4(const Tensor& masks, const Tensor& values, const Tensor& offsets, const Tensor& sums,
                     std::int64_t outputs, std::int64_t inputs) {
  const BlockWeights weights = sound_block4(masks, values, offsets, sums, outputs, inputs);
  Tensor weight = weight_of(outputs, inputs);
  kernels::unpack_block4(weights, data<std::int8_t>(weight));
  return weight;
}

Tensor unpack_sparse24(const Tensor& values, const Tensor& places, const Tensor& sums, std::int64_t outputs,
                       std::int64_t inputs) {
  const Sparse24Weights weights = sound_sparse24(values, places, sums, outputs, inputs);
  Tensor weight = weight_of(outputs, inputs);
  kernels::unpack_sparse24(weights, data<std::int8_t>(weight));
  return weight;
}

void check_bitmap(const Tensor& masks, const Tensor& values, const Tensor& offsets, const Tensor& sums,
                  std::int64_t outputs, std::int64_t inputs) {
  sound_bitmap(masks, values, offsets, sums, outputs, inputs);
}
void check_block4(const Tensor& masks, const Tensor& values, const Tensor& offsets, const Tensor& sums,
                  std::int64_t outputs, std::int64_t inputs) {
  sound_block4(masks, values, offsets, sums, outputs, inputs);
}

void check_sparse24(const Tensor& values, const Tensor& places, const Tensor& sums, std::int64_t outputs,
                    std::int64_t inputs) {
  sound_sparse24(values, places, sums, outputs, inputs);
}

}  // namespace
}  // namespace mempool

TORCH_LIBRARY_FRAGMENT(mempool, m) {
  m.def("quantize_weight(Tensor weight) -> (Tensor, Tensor)");
  m.def("pack_int8(Tensor weight) -> (Tensor, Tensor)");
  m.def("pack_bitmap(Tensor weight) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("pack_block4(Tensor weight) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("pack_sparse24(Tensor weight) -> (Tensor, Tensor, Tensor)");
  m.def("unpack_int8(Tensor panels, int outputs, int inputs) -> Tensor");
  m.def("unpack_bitmap(Tensor masks, Tensor values, Tensor offsets, Tensor sums, int outputs, int inputs) -> Tensor");
  m.def("unpack_block4(Tensor masks, Tensor values, Tensor offsets, Tensor sums, int outputs, int inputs) -> Tensor");
  m.def("unpack_sparse24(Tensor values, Tensor places, Tensor sums, int outputs, int inputs) -> Tensor");
  m.def("check_int8(Tensor panels, Tensor sums, int outputs, int inputs) -> ()");
  m.def("check_bitmap(Tensor masks, Tensor values, Tensor offsets, Tensor sums, int outputs, int inputs) -> ()");
  m.def("check_block4(Tensor masks, Tensor values, Tensor offsets, Tensor sums, int outputs, int inputs) -> ()");
  m.def("check_sparse24(Tensor values, Tensor places, Tensor sums, int outputs, int inputs) -> ()");
}

TORCH_LIBRARY_IMPL(mempool, CPU, m) {
  m.impl("quantize_weight", &mempool::quantize_weight);
  m.impl("pack_int8", &mempool::pack_int8);
  m.impl("pack_bitmap", &mempool::pack_bitmap);
  m.impl("pack_block4", &mempool::pack_block4);
  m.impl("pack_sparse24", &mempool::pack_sparse24);
  m.impl("unpack_int8", &mempool::unpack_int8);
  m.impl("unpack_bitmap", &mempool::unpack_bitmap);
  m.impl("unpack_block4", &mempool::unpack_block4);
  m.impl("unpack_sparse24", &mempool::unpack_sparse24);
  m.impl("check_int8", &mempool::check_int8);
  m.impl("check_bitmap", &mempool::check_bitmap);
  m.impl("check_block4", &mempool::check_block4);
  m.impl("check_sparse24", &mempool::check_sparse24);
}
