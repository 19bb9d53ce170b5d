// Stands in for CUDA's header of that name where kernels are compiled as C++: what they use of the language, on the
// emulator. Static shared memory is left out on purpose: all of it is dynamic, so that it can be poisoned.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_runtime_api.h"
#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())
#define __syncthreads() emulator::block_barrier(emulator::Site::here())

using dim3 = emulator::Index;
struct alignas(16) int4 {
  int x, y, z, w;
};
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

using std::max;
using std::min;

inline void __syncwarp(unsigned mask = 0xFFFFFFFFU, emulator::Site site = emulator::Site::here()) {
  emulator::warp_barrier(mask, site);
}
template <typename Value>
Value __shfl_xor_sync(unsigned mask, Value value, int distance, int = 32,
                      emulator::Site site = emulator::Site::here()) {
  return emulator::Lanes<Value>(mask, value, site)[emulator::lane() ^ static_cast<unsigned>(distance)];
}
template <typename Value>
Value __shfl_up_sync(unsigned mask, Value value, unsigned distance, int = 32,
                     emulator::Site site = emulator::Site::here()) {
  const unsigned lane = emulator::lane();
  return emulator::Lanes<Value>(mask, value, site)[lane >= distance ? lane - distance : lane];
}
template <typename Value>
Value __shfl_sync(unsigned mask, Value value, int from, int = 32, emulator::Site site = emulator::Site::here()) {
  return emulator::Lanes<Value>(mask, value, site)[static_cast<unsigned>(from) % 32];
}

inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<std::int8_t>(a >> 8 * i) * static_cast<std::int8_t>(b >> 8 * i);
  }
  return sum;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const std::uint64_t both = std::uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(both >> 8 * (selector >> 4 * i & 7U) & 0xFFU) << 8 * i;
  return result;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((std::uint64_t{high} << 32 | low) >> (shift & 31U));
}
inline int __popc(unsigned value) { return std::popcount(value); }
inline int __popcll(unsigned long long value) { return std::popcount(value); }
inline float __fmul_rn(float a, float b) { return a * b; }  // compiled without contraction
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __int2float_rn(int value) { return static_cast<float>(value); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
template <typename Value>
Value __ldg(const Value* from) {
  return *from;
}
template <typename Value>
Value __ldcg(const Value* from) {
  return *from;
}
template <typename Value>
Value atomicAdd(Value* to, Value value) {  // one fiber runs at a time
  const Value before = *to;
  *to += value;
  return before;
}
inline void __threadfence() {}
