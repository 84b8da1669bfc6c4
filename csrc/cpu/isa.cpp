#include "isa.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sfa::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx};

bool cpuid7_edx(unsigned bit) {  // CPUID leaf 7, register EDX
#if defined(__x86_64__)
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && ((d >> bit) & 1) != 0;
#else
  (void)bit;
  return false;
#endif
}

// Tiles of bfloat16, and the system's leave to use their registers, which it gives to the whole process.
bool has_amx() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kAmxBf16 = 22, kAmxTile = 24;
  constexpr long kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM; XFEATURE_XTILEDATA
  return cpuid7_edx(kAmxBf16) && cpuid7_edx(kAmxTile) && syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
#else
  return false;
#endif
}

Isa widest() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return has_amx() ? Isa::kAmx : Isa::kAvx512Bf16;
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
  STD_TORCH_CHECK(false, "SFA_CPU_ISA must be one of baseline, avx2, avx512, avx512bf16, amx, torch, got ", name);
}

ByTorch choose_by_torch() {
  if (std::strcmp(forced(), "torch") == 0) return {true, true};
  if (*forced() != '\0') return {false, false};
  return {cpuid7_edx(23), false};  // AVX512-FP16
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
    case Isa::kAmx:
      return "amx";
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
  return std::string(isa_name(isa())) + (torch.float16 ? ", float16 by torch" : "");
}

}  // namespace sfa::cpu
