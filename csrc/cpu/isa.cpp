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

const char* forced() {
  const char* name = std::getenv("SFA_CPU_ISA");
  return name == nullptr ? "" : name;
}

Isa choose() {
  const Isa best = widest();
  const char* name = forced();
  if (*name == '\0' || std::strcmp(name, "torch") == 0) return best;
  for (Isa isa : kAll) {
    if (std::strcmp(name, isa_name(isa)) != 0) continue;
    STD_TORCH_CHECK(isa <= best, "SFA_CPU_ISA=", name, " is not available: this CPU has up to ", isa_name(best));
    return isa;
  }
  STD_TORCH_CHECK(false, "SFA_CPU_ISA must be one of baseline, avx2, avx512, avx512bf16, torch, got ", name);
}

bool cpuid7_edx(unsigned bit) {  // CPUID leaf 7, register EDX
#if defined(__x86_64__)
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && ((d >> bit) & 1) != 0;
#else
  (void)bit;
  return false;
#endif
}

ByTorch choose_by_torch() {
  if (std::strcmp(forced(), "torch") == 0) return {true, true, true};
  if (*forced() != '\0') return {false, false, false};
  constexpr unsigned kAmxBf16 = 22, kAvx512Fp16 = 23, kAmxTile = 24;
  return {cpuid7_edx(kAmxBf16) && cpuid7_edx(kAmxTile), cpuid7_edx(kAvx512Fp16), false};
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

ByTorch by_torch() {
  static const ByTorch chosen = choose_by_torch();
  return chosen;
}

std::string cpu_isa() {
  const ByTorch torch = by_torch();
  if (torch.rest) return std::string(isa_name(isa())) + ", all by torch";
  return std::string(isa_name(isa())) + (torch.bfloat16 ? ", bfloat16 by torch" : "") +
         (torch.float16 ? ", float16 by torch" : "");
}

}  // namespace sfa::cpu
