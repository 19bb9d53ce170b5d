#include "kernels/formats/sparse24.h"

#include <algorithm>

#include "common/expects.h"

namespace mempool::kernels {
namespace {

// Chooses the two of four weights that are kept: those that are not zero, and zeros beside them where there are fewer.
// `places` has the lower one first. False where more than two are not zero.
bool choose(const std::int8_t (&weights)[kGroup], unsigned (&places)[2]) {
  int count = 0;
  for (unsigned i = 0; i < kGroup; ++i) {
    if (weights[i] == 0) continue;
    if (count == 2) return false;
    places[count++] = i;
  }
  if (count == 0) places[0] = 0;
  if (count == 1 && places[0] == kGroup - 1) --places[0];
  if (count < 2) places[1] = places[0] + 1;
  return true;
}

// Calls visit(output, group, place) for each group of each output, those of the padding too, until it returns false.
template <typename Visit>
bool all_groups(std::int64_t outputs, std::int64_t inputs, Visit visit) {
  for (std::int64_t output = 0; output < tiles_of(outputs) * kSparse24Rows; ++output) {
    for (std::int64_t group = 0; group < tile_steps(inputs) * kSparse24Inputs / kGroup; ++group) {
      if (!visit(output, group, place24(output, group, inputs))) return false;
    }
  }
  return true;
}

}  // namespace

std::array<std::int64_t, 2> Sparse24Format::sizes(std::int64_t outputs, std::int64_t inputs) noexcept {
  return {sparse24_values(outputs, inputs), sparse24_places(outputs, inputs)};
}

bool Sparse24Format::pack(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::int8_t* values,
                          std::uint32_t* places, std::int32_t* sums) noexcept {
  MEMPOOL_EXPECTS(is_shape(outputs, inputs));
  std::fill_n(places, sparse24_places(outputs, inputs), 0U);
  std::fill_n(sums, outputs, 0);
  return all_groups(outputs, inputs, [&](std::int64_t output, std::int64_t group, const Place24& place) {
    std::int8_t four[kGroup] = {};
    const std::int64_t first = group * kGroup;
    for (std::int64_t i = 0; output < outputs && i < std::min(kGroup, inputs - first); ++i) {
      four[i] = weights[output * inputs + first + i];
      sums[output] += four[i];
    }
    unsigned kept[2];
    if (!choose(four, kept)) return false;
    for (int i = 0; i < 2; ++i) values[place.value + i] = four[kept[i]];
    places[place.word] |= (kept[0] | kept[1] << 2) << place.shift;
    return true;
  });
}

void Sparse24Format::unpack(const Sparse24Weights& packed, std::int8_t* weights) noexcept {
  MEMPOOL_EXPECTS(is_sound(packed));
  std::fill_n(weights, packed.outputs * packed.inputs, std::int8_t{0});
  all_groups(packed.outputs, packed.inputs, [&](std::int64_t output, std::int64_t group, const Place24& place) {
    const unsigned places = packed.places[place.word] >> place.shift;
    for (int i = 0; i < 2; ++i) {
      const std::int64_t input = group * kGroup + (places >> 2 * i & 3U);
      const std::int8_t value = packed.values[place.value + i];
      if (value != 0) weights[output * packed.inputs + input] = value;  // the padding is zero, and so never written
    }
    return true;
  });
}

bool Sparse24Format::is_sound(const Sparse24Weights& packed) noexcept {
  std::int32_t sum = 0;
  std::int64_t last = 0;
  const bool are_sound =
      all_groups(packed.outputs, packed.inputs, [&](std::int64_t output, std::int64_t group, const Place24& place) {
        if (output != last) {
          if (last < packed.outputs && sum != packed.sums[last]) return false;
          last = output;
          sum = 0;
        }
        const unsigned places = packed.places[place.word] >> place.shift;
        if ((places & 3U) >= (places >> 2 & 3U)) return false;
        for (int i = 0; i < 2; ++i) {
          const std::int8_t value = packed.values[place.value + i];
          const std::int64_t input = group * kGroup + (places >> 2 * i & 3U);
          if (value != 0 && (output >= packed.outputs || input >= packed.inputs)) return false;
          sum += value;
        }
        return true;
      });
  return are_sound && (last >= packed.outputs || sum == packed.sums[last]);
}

}  // namespace mempool::kernels
