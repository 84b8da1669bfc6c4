#include "isa.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace sfa::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};

Isa widest() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::kAvx512Bf16;
  if (avx512) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

Isa choose() {
  const Isa best = widest();
  const char* forced = std::getenv("SFA_CPU_ISA");
  if (forced == nullptr || *forced == '\0') return best;
  for (Isa isa : kAll) {
    if (std::strcmp(forced, isa_name(isa)) != 0) continue;
    STD_TORCH_CHECK(isa <= best, "SFA_CPU_ISA=", forced, " is not available: this CPU has up to ", isa_name(best));
    return isa;
  }
  STD_TORCH_CHECK(false, "SFA_CPU_ISA must be one of baseline, avx2, avx512, avx512bf16, got ", forced);
}

// Bits of CPUID leaf 7, register EDX.
bool cpuid7_edx(unsigned bit) {
#if defined(__x86_64__)
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && ((d >> bit) & 1) != 0;
#else
  (void)bit;
  return false;
#endif
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512bf16";
    default:
      return "baseline";
  }
}

bool torch_has_faster_bf16() {
  static const bool amx_bf16 = cpuid7_edx(22) && cpuid7_edx(24);
  return amx_bf16;
}

bool torch_has_faster_fp16() {
  static const bool avx512_fp16 = cpuid7_edx(23);
  return avx512_fp16;
}

std::string cpu_isa() { return isa_name(isa()); }

}  // namespace sfa::cpu
