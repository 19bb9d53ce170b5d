// The bitmap format: unstructured sparse int8 weights with a mask of one bit for each. It has the panels of the dense
// format without their zeros. The values of a panel begin on 64 bytes, and a whole vector may be read from where the
// last ones begin.
#pragma once

#include <array>
#include <cstdint>
#include <tuple>

#include "kernels/formats/format.h"
#include "kernels/weights.h"

namespace mempool::kernels {

static constexpr std::int64_t bitmap_masks(std::int64_t outputs, std::int64_t inputs) {
  return panels_of(outputs) * groups_of(inputs) * kVectorsOfPanel;
}

struct BitmapWeights {
  const std::uint64_t* masks = nullptr;  // bitmap_masks(); bit i: byte i of that vector is not zero
  const std::int8_t* values = nullptr;   // kVector * (last offset + 1)
  const std::int32_t* offsets =
      nullptr;                         // [panels + 1] in kVector bytes: a panel's first value, and the last one's end
  const std::int32_t* sums = nullptr;  // these as in DenseWeights
  const float* scales = nullptr;
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
};

struct BitmapFormat {
  using Weights = BitmapWeights;
  static constexpr Format kFormat = Format::bitmap;
  static constexpr char kName[] = "bitmap";
  static constexpr std::tuple kBuffers{
      Buffer<Weights, std::uint64_t>{"masks", &Weights::masks},
      Buffer<Weights, std::int8_t>{"values", &Weights::values},
      Buffer<Weights, std::int32_t>{"offsets", &Weights::offsets, sizeof(std::int32_t)}};
  static constexpr bool kReadsAnything = false;

  static std::array<std::int64_t, 3> sizes(std::int64_t outputs, std::int64_t inputs) noexcept;
  static std::int64_t measure(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs) noexcept;
  static std::int64_t measured(const Weights& packed) noexcept;
  static bool pack(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::uint64_t* masks,
                   std::int8_t* values, std::int32_t* offsets, std::int32_t* sums) noexcept;
  static void unpack(const Weights& packed, std::int8_t* weights) noexcept;
  static bool is_sound(const Weights& packed, std::int64_t value_bytes) noexcept;
};

}  // namespace mempool::kernels
