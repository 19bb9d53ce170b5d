// What the sets for NEON share: vectors of 16 bytes, loads and stores, and the expansion of a bitmap. A set adds its
// instruction for products.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "kernels/cpu/block4.inl"
#include "kernels/cpu/sum_slice.inl"

namespace mempool::kernels {
namespace {

// For each mask of eight bits the places of the values that its bytes take; 255 where a byte is zero, for which the
// table instruction gives zero.
struct Places {
  std::uint8_t of[256][8];
};
constexpr Places places_of_masks() {
  Places all{};
  for (unsigned mask = 0; mask < 256; ++mask) {
    std::uint8_t next = 0;
    for (unsigned byte = 0; byte < 8; ++byte) {
      all.of[mask][byte] = static_cast<std::uint8_t>((mask >> byte & 1U) != 0 ? next++ : 255);
    }
  }
  return all;
}
constexpr Places kPlaces = places_of_masks();

// As Unit::expand. It reads 16 bytes from the values of each mask, which a bitmap always has.
inline const std::int8_t* expand_by_table(const std::uint64_t* masks, const std::int8_t* values, std::int64_t vectors,
                                          std::int8_t* to) noexcept {
  for (std::int64_t vector = 0; vector < vectors; ++vector) {
    const std::uint64_t mask = masks[vector];
    for (int byte = 0; byte < 8; ++byte, to += 8) {
      const auto part = static_cast<std::uint8_t>(mask >> 8 * byte);
      vst1_s8(to, vqtbl1_s8(vld1q_s8(values), vld1_u8(kPlaces.of[part])));
      values += __builtin_popcount(part);
    }
  }
  return values;
}

template <typename Unit>
struct NeonVectors : GroupByGroup<Unit> {
  static constexpr int kLanes = 4;
  static constexpr int kVectors = 4;
  // 20 vectors of sums and 4 of weights of 32 registers: with 24 sums g++ 12 copies some by way of the stack.
  static constexpr int kRows = 5;
  static constexpr int kChains = 8;
  using Sum = int32x4_t;
  using Weights = int8x16_t;
  static Sum zero() { return vdupq_n_s32(0); }
  static Sum load_sum(const std::int32_t* from) { return vld1q_s32(from); }
  static Sum add(Sum a, Sum b) { return vaddq_s32(a, b); }
  static Weights load(const std::int8_t* from) { return vld1q_s8(from); }
  static Weights broadcast_block(const std::int8_t* from) { return vreinterpretq_s8_u32(four_times(from)); }
  static std::int64_t list_groups(const std::uint64_t* masks, std::int64_t words, std::uint16_t* groups) {
    return list_groups_plainly(masks, words, groups);
  }
  static const std::int8_t* expand(const std::uint64_t* masks, const std::int8_t* values, std::int64_t vectors,
                                   std::int8_t* to) {
    return expand_by_table(masks, values, vectors, to);
  }
  static void store(std::int32_t* to, Sum sum) { vst1q_s32(to, sum); }

  // Four bytes, in each lane.
  static uint32x4_t four_times(const void* from) {
    std::uint32_t four = 0;
    std::memcpy(&four, from, sizeof(four));
    return vdupq_n_u32(four);
  }
};

// For instructions that multiply signed bytes alone: q, of -127..127, instead of q + 128.
template <typename Unit>
struct SignedNeon : NeonVectors<Unit> {
  static constexpr int kTokenZero = 0;
  using Inputs = int8x16_t;
  static Inputs broadcast(const std::uint8_t* from) {
    return without_zero(vreinterpretq_u8_u32(NeonVectors<Unit>::four_times(from)));
  }
  static Inputs load_tokens(const std::uint8_t* from) { return without_zero(vld1q_u8(from)); }
  static Inputs without_zero(uint8x16_t bytes) { return vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(kZero))); }
};

}  // namespace
}  // namespace mempool::kernels
