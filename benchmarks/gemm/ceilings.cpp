// What one thread of this machine can do at most: bytes read from memory, products and sums in int8 and in float32.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// GB/s of one pass over `bytes` (a multiple of 256), with the prefetches that a kernel would make.
__attribute__((target("avx2"))) double read_once(const char* data, std::size_t bytes) {
  constexpr std::size_t kAhead = 4096;
  __m256i sums[4] = {};
  const double start = seconds();
  for (std::size_t i = 0; i < bytes; i += 256) {
    for (int line = 0; line < 4; ++line) {
      const char* const at = data + i + 64 * line;
      __builtin_prefetch(at + kAhead);
      sums[line] = _mm256_xor_si256(sums[line], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
      sums[line] = _mm256_xor_si256(sums[line], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32)));
    }
  }
  const double spent = seconds() - start;
  asm volatile("" ::"x"(sums[0]), "x"(sums[1]), "x"(sums[2]), "x"(sums[3]));
  return static_cast<double>(bytes) / spent / 1e9;
}

}  // namespace

extern "C" {

// GB/s of the fastest of eight parts of `bytes`: what disturbs a pass only slows it.
double read_rate(const char* data, std::size_t bytes) {
  const std::size_t part = bytes / 8 / 256 * 256;
  double best = 0;
  for (int i = 0; i < 8; ++i) best = std::max(best, read_once(data + i * part, part));
  return best;
}

// GOP/s (a product and a sum are two) of vpdpbusd on 24 registers; 0 where the processor has none.
double int8_rate() {
  if (!__builtin_cpu_supports("avx512vnni")) return 0;
  constexpr std::int64_t kTurns = 4'000'000;
  std::int64_t left = kTurns;
  const double start = seconds();
  asm volatile(
      "1:\n"
      ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23\n"
      "vpdpbusd %%zmm31,%%zmm30,%%zmm\\r\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      "vzeroupper\n"
      : "+r"(left)
      :
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
        "xmm13", "xmm14", "xmm15");
  return kTurns * 24 * 128.0 / (seconds() - start) / 1e9;
}

// GFLOP/s of fused multiply-adds on 12 registers of 256 bits, or 24 of 512.
double float32_rate() {
  constexpr std::int64_t kTurns = 4'000'000;
  std::int64_t left = kTurns;
  const bool is_wide = __builtin_cpu_supports("avx512f");
  const double start = seconds();
  if (is_wide) {
    asm volatile(
        "vpxord %%zmm31,%%zmm31,%%zmm31\n"
        "1:\n"
        ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23\n"
        "vfmadd231ps %%zmm31,%%zmm31,%%zmm\\r\n"
        ".endr\n"
        "dec %0\n"
        "jnz 1b\n"
        "vzeroupper\n"
        : "+r"(left)
        :
        : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
          "xmm12", "xmm13", "xmm14", "xmm15");
  } else {
    asm volatile(
        "vpxor %%ymm15,%%ymm15,%%ymm15\n"
        "1:\n"
        ".irp r,0,1,2,3,4,5,6,7,8,9,10,11\n"
        "vfmadd231ps %%ymm15,%%ymm15,%%ymm\\r\n"
        ".endr\n"
        "dec %0\n"
        "jnz 1b\n"
        "vzeroupper\n"
        : "+r"(left)
        :
        : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
          "xmm15");
  }
  return kTurns * (is_wide ? 24 * 32.0 : 12 * 16.0) / (seconds() - start) / 1e9;
}
}
