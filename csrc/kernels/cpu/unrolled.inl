// Loops over registers. Each turn is its own call with a constant index, inlined: an array that is only indexed by
// constants becomes registers, while a loop that is unrolled later leaves it in memory (g++ 12).
#pragma once

#include <utility>

namespace mempool::kernels {
namespace {

template <typename Action, int... i>
[[gnu::always_inline]] inline void unrolled([[maybe_unused]] Action action,
                                            std::integer_sequence<int, i...> /*turns*/) {
  (action(std::integral_constant<int, i>{}), ...);
}

// action(0), … action(turns - 1), each index a std::integral_constant. `action` has to be marked MEMPOOL_INLINED.
template <int turns, typename Action>
[[gnu::always_inline]] inline void unrolled(Action action) {
  unrolled(action, std::make_integer_sequence<int, turns>{});
}

}  // namespace
}  // namespace mempool::kernels

#define MEMPOOL_INLINED __attribute__((always_inline))
