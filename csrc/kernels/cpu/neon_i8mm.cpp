// The kernels for NEON with products of matrices (FEAT_I8MM): one instruction multiplies two tokens with two outputs
// over eight inputs, unsigned bytes with signed ones. A single token has nothing to be paired with, and goes through
// the dot product of the same extension.
#include <arm_neon.h>

#include "kernels/cpu/bitmap.inl"
#include "kernels/cpu/block4.inl"
#include "kernels/cpu/dense.inl"
#include "kernels/cpu/neon.inl"
#include "kernels/cpu/quantize.inl"
#include "kernels/cpu/sets.h"

namespace mempool::kernels {
namespace {

struct MixedDot : NeonVectors<MixedDot> {
  using Inputs = uint8x16_t;
  static Inputs broadcast(const std::uint8_t* from) { return vreinterpretq_u8_u32(four_times(from)); }
  static Inputs load_tokens(const std::uint8_t* from) { return vld1q_u8(from); }
  static Sum dot(Sum sum, Inputs inputs, Weights weights) { return vusdotq_s32(sum, inputs, weights); }
};

// The same groups of four outputs, two groups of inputs: eight inputs of outputs 0 and 1, and of outputs 2 and 3.
struct OutputPairs {
  OutputPairs(int8x16_t first, int8x16_t second) {
    const int32x4_t a = vreinterpretq_s32_s8(first);
    const int32x4_t b = vreinterpretq_s32_s8(second);
    low = vreinterpretq_s8_s32(vzip1q_s32(a, b));
    high = vreinterpretq_s8_s32(vzip2q_s32(a, b));
  }
  int8x16_t low;
  int8x16_t high;
};

struct Matrices : NeonVectors<Matrices> {
  static constexpr int kVectors = 2;
  static constexpr int kRows = 10;  // 20 vectors of sums, 4 of weights

  // Adds the products of `groups` groups of inputs, which are 2, or 1 at the end of an odd number.
  template <int pairs, int groups>
  [[gnu::always_inline]] static void add_products(int32x4_t (&sums)[pairs][2 * kVectors], const std::int8_t* weights,
                                                  const std::uint8_t* const (&tokens)[2 * pairs], std::int64_t input) {
    int8x16_t loaded[2 * kVectors];
    unrolled<kVectors>([&](auto vector) MEMPOOL_INLINED {
      const std::int8_t* const from = weights + vector * kLanes * kGroup;
      const OutputPairs outputs(vld1q_s8(from), groups == 2 ? vld1q_s8(from + kGroupBytes) : vdupq_n_s8(0));
      loaded[2 * vector] = outputs.low;
      loaded[2 * vector + 1] = outputs.high;
    });
    unrolled<pairs>([&](auto pair) MEMPOOL_INLINED {
      const uint8x16_t two =
          vcombine_u8(load_inputs<groups>(tokens[2 * pair] + input), load_inputs<groups>(tokens[2 * pair + 1] + input));
      unrolled<2 * kVectors>([&](auto at) MEMPOOL_INLINED {
        sums[pair][at] = vusmmlaq_s32(sums[pair][at], two, loaded[at]);
        MEMPOOL_IN_REGISTER(sums[pair][at]);
      });
    });
  }

  template <int groups>
  [[gnu::always_inline]] static uint8x8_t load_inputs(const std::uint8_t* from) {
    std::uint64_t bytes = 0;
    std::memcpy(&bytes, from, groups * kGroup);
    return vcreate_u8(bytes);
  }

  // As sum_slice(). An odd last token is paired with itself.
  template <int rows, bool is_far>
  [[gnu::always_inline]] static void sum(const std::int8_t* weights, const std::uint8_t* input, std::int64_t stride,
                                         std::int64_t groups, std::int32_t* out) noexcept {
    constexpr int kPairs = (rows + 1) / 2;
    constexpr int kAhead = 16;             // groups
    int32x4_t sums[kPairs][2 * kVectors];  // each: token 0 by outputs 0 and 1, token 1 by outputs 0 and 1
    const std::uint8_t* tokens[2 * kPairs];
    unrolled<kPairs>([&](auto pair) MEMPOOL_INLINED {
      unrolled<2 * kVectors>([&](auto at) MEMPOOL_INLINED { sums[pair][at] = zero(); });
      tokens[2 * pair] = input + 2 * pair * stride;
      tokens[2 * pair + 1] = input + (2 * pair + 1 < rows ? 2 * pair + 1 : 2 * pair) * stride;
    });
    std::int64_t group = 0;
    for (; group + 2 <= groups; group += 2, weights += 2 * kGroupBytes) {
      if constexpr (is_far) __builtin_prefetch(weights + kAhead * kGroupBytes);
      if constexpr (is_far) __builtin_prefetch(weights + (kAhead + 1) * kGroupBytes);
      add_products<kPairs, 2>(sums, weights, tokens, group * kGroup);
    }
    if (group < groups) add_products<kPairs, 1>(sums, weights, tokens, group * kGroup);
    unrolled<rows>([&](auto row) MEMPOOL_INLINED {
      unrolled<kVectors>([&](auto vector) MEMPOOL_INLINED {
        const int32x4_t low = sums[row / 2][2 * vector];
        const int32x4_t high = sums[row / 2][2 * vector + 1];
        vst1q_s32(out + row * kLanes * kVectors + vector * kLanes,
                  row % 2 == 0 ? vcombine_s32(vget_low_s32(low), vget_low_s32(high))
                               : vcombine_s32(vget_high_s32(low), vget_high_s32(high)));
      });
    });
  }
};

void dense_by_pairs(const DenseWeights& weights, const Tokens& tokens, const Output& out, std::int64_t first,
                    std::int64_t last) noexcept {
  if (tokens.count == 1) return dense<MixedDot>(weights, tokens, out, first, last);
  dense<Matrices>(weights, tokens, out, first, last);
}

void bitmap_by_pairs(const BitmapWeights& weights, const Tokens& tokens, const Output& out, std::int64_t first,
                     std::int64_t last) noexcept {
  if (tokens.count == 1) return bitmap<MixedDot>(weights, tokens, out, first, last);
  bitmap<Matrices>(weights, tokens, out, first, last);
}

}  // namespace

const KernelSet kNeonI8mmKernels = {&quantize<float>, &quantize<std::uint16_t>, &dense_by_pairs, &bitmap_by_pairs,
                                    &interleave,      &block4<MixedDot>};

}  // namespace mempool::kernels
