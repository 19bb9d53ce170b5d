#include <cstdlib>
#include <string_view>

#include "common/errors.h"
#include "kernels/cpu/sets.h"
#include "kernels/kernels.h"

namespace mempool::kernels {
namespace {

constexpr const char* kNames[kIsas] = {"reference", "avx2", "avx512", "avx512_vnni"};

bool is_runnable(Isa isa) noexcept {
#if defined(__x86_64__)
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  switch (isa) {
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return has_avx512;
    case Isa::avx512_vnni:
      return has_avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi2");
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
    throw ConfigError(std::string("MEMPOOL_FORCE_ISA=") + forced + ": this machine cannot run it.");
  }
  throw ConfigError(std::string("MEMPOOL_FORCE_ISA=") + forced +
                    " is none of reference, avx2, avx512 and avx512_vnni.");
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
