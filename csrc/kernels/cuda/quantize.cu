// Quantizes tokens to 8 bits with one scale for each, a token in a block. The operations are the CPU's in their order
// (kernels/cpu/quantize.inl), so the bits are the CPU's. Occupancy: 8 blocks of 256 threads on a multiprocessor, 32
// registers.
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/quantize.h"

namespace mempool::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kSharedBytes = kWarps * static_cast<int>(sizeof(int));
static_assert(kSharedBytes <= 1 * 1024);

__device__ __forceinline__ float as_float(float value) { return value; }
__device__ __forceinline__ float as_float(unsigned short bfloat16) {
  return __uint_as_float(static_cast<unsigned>(bfloat16) << 16);
}

// `kWidth` values from `at` on: one load of 16 bytes where they are aligned and within the row, else single loads, and
// zeros beyond the row.
template <typename Value>
struct Piece {
  static constexpr int kWidth = 16 / sizeof(Value);
  float of[kWidth];

  __device__ __forceinline__ Piece(const Value* row, int at, int inputs, bool is_aligned) {
    union {
      int4 whole;
      Value each[kWidth];
    } loaded;
    if (is_aligned && at + kWidth <= inputs) {
      loaded.whole = *reinterpret_cast<const int4*>(row + at);
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) loaded.each[i] = at + i < inputs ? row[at + i] : Value{0};
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) of[i] = as_float(loaded.each[i]);
  }
};

// The largest of the values of all threads. `shared`: a word of shared memory for each warp.
__device__ __forceinline__ int largest_of_block(int value, int* shared) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = max(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = shared[0];
  for (int warp = 1; warp < kWarps; ++warp) value = max(value, shared[warp]);
  return value;
}

__device__ __forceinline__ float scale_of(int largest) {
  constexpr int kInfinity = 0x7F800000;
  if (largest >= kInfinity) return __int_as_float(0x7FC00000);
  const float scale = __fdiv_rn(__int_as_float(largest), 127.0F);
  return scale < 1e-37F ? 0.0F : scale;  // its inverse would be infinite
}

template <typename Value>
__global__ void __launch_bounds__(kThreads)
    quantize(const Value* from, int inputs, bool is_aligned, std::int8_t* values, float* scales) {
  MEMPOOL_SHARED_MEMORY(shared);
  constexpr int kWidth = Piece<Value>::kWidth;
  const int token = static_cast<int>(blockIdx.x);
  const int first = static_cast<int>(threadIdx.x) * kWidth;
  const Value* const row = from + static_cast<std::int64_t>(token) * inputs;
  // The bits of magnitudes, compared as integers, have the order of the numbers, and NaN is the largest.
  int largest = 0;
  for (int at = first; at < inputs; at += kThreads * kWidth) {
    const Piece<Value> piece(row, at, inputs, is_aligned);
    for (int i = 0; i < kWidth; ++i) largest = max(largest, __float_as_int(piece.of[i]) & 0x7FFFFFFF);
  }
  const float scale = scale_of(largest_of_block(largest, reinterpret_cast<int*>(shared)));
  const bool is_number = scale > 0;  // not 0, not NaN
  const float inverse = is_number ? __fdiv_rn(1.0F, scale) : 0.0F;
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23: the low bits of a sum are the integer, halves to even
  const int stride = token_bytes(inputs);
  std::int8_t* const to = values + static_cast<std::int64_t>(token) * stride;
  for (int at = first; at < stride; at += kThreads * kWidth) {
    const Piece<Value> piece(row, at, inputs, is_aligned);
    unsigned words[kWidth / 4] = {};
    for (int i = 0; i < kWidth; ++i) {
      const unsigned bits = is_number ? __float_as_uint(__fadd_rn(__fmul_rn(piece.of[i], inverse), kMagic)) : 0U;
      words[i / 4] |= (bits & 0xFFU) << i % 4 * 8;
    }
    for (int i = 0; i < kWidth / 4; ++i) reinterpret_cast<unsigned*>(to + at)[i] = words[i];
  }
  if (threadIdx.x == 0) scales[token] = scale;
}

template <typename Value>
void launch(const Value* from, int count, int inputs, std::int8_t* values, float* scales, cudaStream_t stream) {
  const bool is_aligned = reinterpret_cast<std::uintptr_t>(from) % 16 == 0 && inputs % Piece<Value>::kWidth == 0;
  MEMPOOL_LAUNCH(quantize<Value>, dim3(static_cast<unsigned>(count)), kThreads, kSharedBytes, stream, from, inputs,
                 is_aligned, values, scales);
}

}  // namespace

void quantize_float32(const float* from, int count, int inputs, std::int8_t* values, float* scales,
                      cudaStream_t stream) {
  launch(from, count, inputs, values, scales, stream);
}

void quantize_bfloat16(const unsigned short* from, int count, int inputs, std::int8_t* values, float* scales,
                       cudaStream_t stream) {
  launch(from, count, inputs, values, scales, stream);
}

}  // namespace mempool::kernels::cuda
