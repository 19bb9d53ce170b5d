// The micro-kernel of every GEMM here: a tile of sums in registers, for some tokens by some outputs. The file that
// includes it defines the vector unit:
//
//   struct Unit : GroupByGroup<Unit> {
//     static constexpr int kLanes;      // outputs in a vector of sums
//     static constexpr int kVectors;    // vectors of outputs in a tile; a whole number of tiles makes a panel
//     static constexpr int kRows;       // tokens in a tile
//     using Sum; using Weights; using Inputs;
//     static Sum zero();
//     static Weights load(const std::int8_t*);      // one group of kLanes outputs
//     static Inputs broadcast(const std::uint8_t*); // one group of one token
//     static Sum dot(Sum, Inputs, Weights);         // adds the four products of each lane, exactly
//     static void store(std::int32_t*, Sum);
//   };
//
// A unit that has no instruction for unsigned tokens times signed weights takes the zero point off the tokens first,
// and says so in kTokenZero; one that does not go from group to group has a function sum() of its own.
#pragma once

#include <cstdint>

#include "kernels/cpu/unrolled.inl"
#include "kernels/weights.h"

namespace mempool::kernels {
namespace {

inline constexpr std::int64_t kGroupBytes = kPanel * kGroup;

// The weights of a dense panel. `is_far`: they lie in memory, as for the first tokens of a panel, and are prefetched;
// for later tokens, whose weights are in cache, that costs next to nothing.
template <typename Unit, bool is_far>
struct DenseSource {
  static constexpr int kAhead = 16;  // groups
  const std::int8_t* at;

  [[gnu::always_inline]] void next(typename Unit::Weights (&loaded)[Unit::kVectors]) {
    unrolled<Unit::kVectors>([&](auto vector) MEMPOOL_INLINED {
      const std::int8_t* const from = at + vector * Unit::kLanes * kGroup;
      loaded[vector] = Unit::load(from);
      if constexpr (is_far) __builtin_prefetch(from + kAhead * kGroupBytes);
    });
    at += kGroupBytes;
  }
};

// Writes the sums of `rows` tokens for the outputs of `source`, which loads one group of weights after the other.
// Tokens lie `stride` bytes apart in `input`, and `out_stride` elements apart in `out`.
template <typename Unit, int rows, typename Source>
[[gnu::always_inline]] inline void sum_slice(Source source, const std::uint8_t* input, std::int64_t stride,
                                             std::int64_t groups, std::int32_t* out, std::int64_t out_stride) noexcept {
  typename Unit::Sum sums[rows][Unit::kVectors];
  unrolled<rows>([&](auto row) MEMPOOL_INLINED {
    unrolled<Unit::kVectors>([&](auto vector) MEMPOOL_INLINED { sums[row][vector] = Unit::zero(); });
  });
  for (std::int64_t group = 0; group < groups; ++group) {
    typename Unit::Weights loaded[Unit::kVectors];
    source.next(loaded);
    unrolled<rows>([&](auto row) MEMPOOL_INLINED {
      const typename Unit::Inputs inputs = Unit::broadcast(input + row * stride);
      unrolled<Unit::kVectors>([&](auto vector) MEMPOOL_INLINED {
        sums[row][vector] = Unit::dot(sums[row][vector], inputs, loaded[vector]);
        MEMPOOL_IN_REGISTER(sums[row][vector]);
      });
    });
    input += kGroup;
  }
  unrolled<rows>([&](auto row) MEMPOOL_INLINED {
    unrolled<Unit::kVectors>([&](auto vector) MEMPOOL_INLINED {
      Unit::store(out + row * out_stride + vector * Unit::kLanes, sums[row][vector]);
    });
  });
}

template <typename Unit>
struct GroupByGroup {
  static constexpr int kTokenZero = kZero;  // what a token's zero is when it is multiplied

  // As sum_slice(), of the weights of a dense panel.
  template <int rows, bool is_far>
  [[gnu::always_inline]] static void sum(const std::int8_t* weights, const std::uint8_t* input, std::int64_t stride,
                                         std::int64_t groups, std::int32_t* out) noexcept {
    sum_slice<Unit, rows>(DenseSource<Unit, is_far>{weights}, input, stride, groups, out,
                          Unit::kLanes * Unit::kVectors);
  }
};

// rest_of_rows() calls action(rows, token) for the tokens from `token` on, which are at most `rows`; in_rows() for all
// tokens, kRows at a time and then the rest. `rows` is an integral_constant.
template <int rows, typename Action>
[[gnu::always_inline]] inline void rest_of_rows(std::int64_t token, std::int64_t count, Action action) {
  if constexpr (rows > 0) {
    if (count - token == rows) {
      action(std::integral_constant<int, rows>{}, token);
    } else {
      rest_of_rows<rows - 1>(token, count, action);
    }
  }
}
template <typename Unit, typename Action>
[[gnu::always_inline]] inline void in_rows(std::int64_t count, Action action) {
  std::int64_t token = 0;
  for (; token + Unit::kRows <= count; token += Unit::kRows) {
    action(std::integral_constant<int, Unit::kRows>{}, token);
  }
  rest_of_rows<Unit::kRows - 1>(token, count, action);
}

}  // namespace
}  // namespace mempool::kernels
