// Unrolled loops over arrays that have to stay in registers. Each turn is an inlined call with a constant index: g++ 12
// keeps an array in registers that is only indexed by constants, and in memory where it unrolls the loop itself.
#pragma once

#include <utility>

namespace mempool::kernels {
namespace {

template <typename Action, int... i>
[[gnu::always_inline]] inline void unrolled([[maybe_unused]] Action action,
                                            std::integer_sequence<int, i...> /*turns*/) {
  (action(std::integral_constant<int, i>{}), ...);
}

// Calls action(0), … action(turns - 1), each index a std::integral_constant. `action` has to be marked MEMPOOL_INLINED.
template <int turns, typename Action>
[[gnu::always_inline]] inline void unrolled(Action action) {
  unrolled(action, std::make_integer_sequence<int, turns>{});
}

}  // namespace
}  // namespace mempool::kernels

#define MEMPOOL_INLINED __attribute__((always_inline))

// Keeps a vector in a register: an empty asm that has it as operand. Without it g++ 12 copies some sums by way of the
// stack.
#if defined(__aarch64__)
#define MEMPOOL_IN_REGISTER(vector) asm("" : "+w"(vector))
#else
#define MEMPOOL_IN_REGISTER(vector) asm("" : "+v"(vector))
#endif
