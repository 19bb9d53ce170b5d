#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <string_view>

#include "common/errors.h"
#include "kernels/cpu/sets.h"
#include "kernels/kernels.h"

namespace mempool::kernels {
namespace {

constexpr const char* kNames[kIsas] = {"reference",  "avx2", "avx512",   "avx512_vnni",
                                       "avx512_amx", "neon", "neon_dot", "neon_i8mm"};

#if defined(__x86_64__)
// Linux gives AMX tiles only to a process that asks, since their state is large.
bool may_use_tiles() noexcept {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  static const bool is_allowed = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
                                 syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return is_allowed;
#else
  return false;
#endif
}
#endif

#if defined(__aarch64__)
// What the kernel says of the processor. The bits are those of linux/arch/arm64, in <asm/hwcap.h>.
bool has_dot() noexcept {
  constexpr unsigned long kAsimdDp = 1UL << 20;
  return (getauxval(AT_HWCAP) & kAsimdDp) != 0;
}
bool has_i8mm() noexcept {
  constexpr unsigned long kI8mm = 1UL << 13;
  return has_dot() && (getauxval(AT_HWCAP2) & kI8mm) != 0;
}
#endif

bool is_runnable(Isa isa) noexcept {
#if defined(__x86_64__)
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool has_vnni = has_avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi2");
  switch (isa) {
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return has_avx512;
    case Isa::avx512_vnni:
      return has_vnni;
    case Isa::avx512_amx:
      return has_vnni && may_use_tiles();
    default:
      break;
  }
#elif defined(__aarch64__)
  switch (isa) {
    case Isa::neon:
      return true;
    case Isa::neon_dot:
      return has_dot();
    case Isa::neon_i8mm:
      return has_i8mm();
    default:
      break;
  }
#endif
  return isa == Isa::reference;
}

Isa choose() {
  const char* const forced = std::getenv("MEMPOOL_FORCE_ISA");
  if (forced == nullptr || *forced == '\0') {
    int best = kIsas - 1;
    while (!is_runnable(static_cast<Isa>(best))) --best;
    return static_cast<Isa>(best);
  }
  for (int i = 0; i < kIsas; ++i) {
    if (std::string_view(forced) != kNames[i]) continue;
    if (is_runnable(static_cast<Isa>(i))) return static_cast<Isa>(i);
    throw ConfigError(std::string("MEMPOOL_FORCE_ISA=") + forced + ": this machine cannot run it" +
                      (static_cast<Isa>(i) == Isa::avx512_amx ? ", or the system gives this process no AMX." : "."));
  }
  std::string message = std::string("MEMPOOL_FORCE_ISA=") + forced + " is none of ";
  for (int i = 0; i < kIsas; ++i) {
    message += std::string(kNames[i]) + (i + 2 < kIsas ? ", " : i + 2 == kIsas ? " and " : ".");
  }
  throw ConfigError(message);
}

}  // namespace

const char* name_of(Isa isa) noexcept { return kNames[static_cast<int>(isa)]; }

const KernelSet* kernels_of(Isa isa) noexcept {
  if (!is_runnable(isa)) return nullptr;
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
      return &kAvx2Kernels;
    case Isa::avx512:
      return &kAvx512Kernels;
    case Isa::avx512_vnni:
      return &kAvx512VnniKernels;
    case Isa::avx512_amx:
      return &kAvx512AmxKernels;
#elif defined(__aarch64__)
    case Isa::neon:
      return &kNeonKernels;
    case Isa::neon_dot:
      return &kNeonDotKernels;
    case Isa::neon_i8mm:
      return &kNeonI8mmKernels;
#endif
    default:
      return &kReferenceKernels;
  }
}

Isa current_isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace mempool::kernels
