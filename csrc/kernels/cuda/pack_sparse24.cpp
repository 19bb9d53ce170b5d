#include <algorithm>

#include "kernels/cuda/sparse24.h"

namespace mempool::kernels::cuda {

bool pack_sparse24(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::int8_t* values,
                   std::uint32_t* places) noexcept {
  constexpr std::uint32_t kAny = 0x44444444U;  // places 0 and 1
  std::fill_n(values, sparse24_value_bytes(outputs, inputs), std::int8_t{0});
  std::fill_n(places, sparse24_place_words(outputs, inputs), kAny);
  const std::int64_t row_bytes = sparse24_steps(inputs) * (kInputsOfPlaces / 2);
  for (std::int64_t output = 0; output < outputs; ++output) {
    for (std::int64_t input = 0; input < inputs; input += 4) {
      std::int64_t kept[2] = {};
      int count = 0;
      for (std::int64_t i = 0; i < std::min<std::int64_t>(4, inputs - input); ++i) {
        if (weights[output * inputs + input + i] == 0) continue;
        if (count == 2) return false;
        kept[count++] = i;
      }
      // Those that are left out stand for a zero: one beside what is there.
      if (count == 0) kept[1] = 1;
      if (count == 1) kept[0] == 3 ? kept[1] = 3, kept[0] = 2 : kept[1] = kept[0] + 1;
      for (std::int64_t j = 0; j < 2; ++j) {
        const std::int64_t from = input + kept[j];
        values[output * row_bytes + input / 2 + j] = from < inputs ? weights[output * inputs + from] : std::int8_t{0};
      }
      std::uint32_t& word = places[place_word(output, input, inputs)];
      const auto shift = static_cast<unsigned>(input / 4 % 8 * 4);
      word = (word & ~(0xFU << shift)) | static_cast<std::uint32_t>(kept[0] | kept[1] << 2) << shift;
    }
  }
  return true;
}

}  // namespace mempool::kernels::cuda
