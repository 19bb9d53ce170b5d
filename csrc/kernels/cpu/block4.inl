// The GEMM of a block4 weight: blocks of zeros are not multiplied. The lanes of a vector are tokens, so that a block of
// one output is broadcast to all of them.
//
// Beside what sum_slice.inl asks of it, a unit has
//   static Sum load_sum(const std::int32_t*);
//   static Sum add(Sum, Sum);
//   static Inputs load_tokens(const std::uint8_t*);       // one group of kLanes tokens
//   static Weights broadcast_block(const std::int8_t*);   // four weights
//   // Writes the indexes of the set bits to `groups`, and may overwrite kIndexSlack more; returns how many are set.
//   static std::int64_t list_groups(const std::uint64_t* masks, std::int64_t words, std::uint16_t* groups);
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/finish.inl"
#include "kernels/cpu/unrolled.inl"
#include "kernels/formats/block4.h"

namespace mempool::kernels {
namespace {

inline constexpr std::int64_t kIndexSlack = 64;

inline std::int64_t list_groups_plainly(const std::uint64_t* masks, std::int64_t words,
                                        std::uint16_t* groups) noexcept {
  std::int64_t count = 0;
  for (std::int64_t word = 0; word < words; ++word) {
    for (std::uint64_t mask = masks[word]; mask != 0; mask &= mask - 1) {
      groups[count++] = static_cast<std::uint16_t>(word * 64 + __builtin_ctzll(mask));
    }
  }
  return count;
}

inline void interleave(const Tokens& tokens, std::int64_t inputs, std::int64_t first, std::int64_t last,
                       std::uint8_t* to) noexcept {
  const std::int64_t stride = token_stride(inputs);
  for (std::int64_t block = first; block < last; block += kTokenBlock) {
    const std::int64_t here = tokens.count - block < kTokenBlock ? tokens.count - block : kTokenBlock;
    const std::int64_t lanes = (here + kTokenLanes - 1) / kTokenLanes * kTokenLanes;
    std::uint8_t* const start = to + block * padded_inputs(inputs);
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
      // Lanes beyond the last token repeat it: they cost nothing, and their sums are never read.
      const std::uint8_t* const from = tokens.values + (block + (lane < here ? lane : here - 1)) * stride;
      for (std::int64_t group = 0; group < groups_of(inputs); ++group) {
        std::memcpy(start + (group * lanes + lane) * kGroup, from + group * kGroup, kGroup);
      }
    }
  }
}

template <typename Unit, int vectors>
[[gnu::always_inline]] inline void add_block(typename Unit::Sum (&sums)[vectors], const std::int8_t* block,
                                             const std::uint8_t* tokens) noexcept {
  const typename Unit::Weights weights = Unit::broadcast_block(block);
  unrolled<vectors>([&](auto vector) MEMPOOL_INLINED {
    const typename Unit::Inputs inputs = Unit::load_tokens(tokens + vector * Unit::kLanes * kGroup);
    sums[vector] = Unit::dot(sums[vector], inputs, weights);
    MEMPOOL_IN_REGISTER(sums[vector]);
  });
}

// Adds the products of one output for 16 * `sixteens` tokens to `out`, in as many independent chains of additions as
// the unit's registers allow.
template <typename Unit, int sixteens>
[[gnu::noinline]] void block_tile(const std::uint16_t* groups, std::int64_t count, const std::int8_t* values,
                                  const std::uint8_t* tokens, std::int32_t* out) noexcept {
  constexpr int kVectors = sixteens * static_cast<int>(kTokenLanes) / Unit::kLanes;
  constexpr int kWays = kVectors >= Unit::kChains ? 1 : Unit::kChains / kVectors;
  constexpr std::int64_t kGroupOfTokens = sixteens * kTokenLanes * kGroup;
  typename Unit::Sum sums[kWays][kVectors];
  unrolled<kWays>([&](auto way) MEMPOOL_INLINED {
    unrolled<kVectors>([&](auto vector) MEMPOOL_INLINED {
      sums[way][vector] = way == 0 ? Unit::load_sum(out + vector * Unit::kLanes) : Unit::zero();
    });
  });
  std::int64_t block = 0;
  for (; block + kWays <= count; block += kWays) {
    unrolled<kWays>([&](auto way) MEMPOOL_INLINED {
      add_block<Unit>(sums[way], values + (block + way) * kGroup, tokens + groups[block + way] * kGroupOfTokens);
    });
  }
  for (; block < count; ++block) {
    add_block<Unit>(sums[0], values + block * kGroup, tokens + groups[block] * kGroupOfTokens);
  }
  unrolled<kVectors>([&](auto vector) MEMPOOL_INLINED {
    unrolled<kWays - 1>([&](auto way)
                            MEMPOOL_INLINED { sums[0][vector] = Unit::add(sums[0][vector], sums[way + 1][vector]); });
    Unit::store(out + vector * Unit::kLanes, sums[0][vector]);
  });
}

// Computes the outputs of a panel for one block of tokens.
template <typename Unit, int sixteens>
void block_panel(const BlockWeights& weights, const Tokens& tokens, const Output& out, std::int64_t panel,
                 std::int64_t first_token) noexcept {
  const std::int64_t first = panel * kPanel;
  const std::int64_t left = weights.outputs - first;
  const std::int64_t outputs = left < kPanel ? left : kPanel;
  const std::int64_t words = block_words(weights.inputs);
  const std::uint8_t* const inputs = tokens.values + first_token * padded_inputs(weights.inputs);
  constexpr std::int64_t kLanes = sixteens * kTokenLanes;
  // Words of a mask that are multiplied at once: their tokens, 64 KiB, stay in cache for all outputs of the panel.
  // Shorter chunks would cost more than a cache miss.
  constexpr std::int64_t kChunk = 16 / sixteens;
  std::uint16_t groups[kChunk * 64 + kIndexSlack];
  alignas(64) std::int32_t sums[kPanel][kLanes];
  std::memset(sums, 0, static_cast<std::size_t>(outputs) * sizeof(sums[0]));
  // Each output reads its own values, and these are more streams than the hardware prefetches.
  const std::int8_t* next[kPanel];
  const auto prefetch = [](const std::int8_t* values) {
    for (std::int64_t ahead = 0; ahead <= 2 * kVector; ahead += kVector) __builtin_prefetch(values + ahead);
  };
  for (std::int64_t i = 0; i < outputs; ++i) {
    next[i] = weights.values + std::int64_t{weights.offsets[first + i]} * kGroup;
    prefetch(next[i]);
  }
  for (std::int64_t word = 0; word < words; word += kChunk) {
    const std::int64_t here = words - word < kChunk ? words - word : kChunk;
    for (std::int64_t i = 0; i < outputs; ++i) {
      const std::int64_t count = Unit::list_groups(weights.masks + (first + i) * words + word, here, groups);
      block_tile<Unit, sixteens>(groups, count, next[i], inputs + word * 64 * kLanes * kGroup, sums[i]);
      next[i] += count * kGroup;
      prefetch(next[i]);
    }
  }
  const std::int64_t rest = tokens.count - first_token;
  for (std::int64_t token = 0; token < rest && token < kLanes; ++token) {
    std::int32_t row[kPanel];
    for (std::int64_t i = 0; i < outputs; ++i) row[i] = sums[i][token];
    finish_row<Unit::kTokenZero>(weights, tokens, out, first_token + token, first, outputs, row);
  }
}

template <typename Unit>
void block4(const BlockWeights& weights, const Tokens& tokens, const Output& out, std::int64_t first,
            std::int64_t last) noexcept {
  for (std::int64_t token = 0; token < tokens.count; token += kTokenBlock) {
    const std::int64_t sixteens = (tokens.count - token + kTokenLanes - 1) / kTokenLanes;
    for (std::int64_t panel = first; panel < last; ++panel) {
      if (sixteens == 1)
        block_panel<Unit, 1>(weights, tokens, out, panel, token);
      else if (sixteens == 2)
        block_panel<Unit, 2>(weights, tokens, out, panel, token);
      else if (sixteens == 3)
        block_panel<Unit, 3>(weights, tokens, out, panel, token);
      else
        block_panel<Unit, 4>(weights, tokens, out, panel, token);
    }
  }
}

}  // namespace
}  // namespace mempool::kernels
