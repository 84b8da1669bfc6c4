// Which instruction set the kernels of this process use.
#pragma once

namespace sfa::cpu {

enum class Isa { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmx = 4 };

// The widest set that the CPU has, or the narrower one that SFA_CPU_ISA names; fixed at the first call.
// Raises if SFA_CPU_ISA names an unknown set or one that this CPU does not have.
Isa isa();

const char* isa_name(Isa isa);

// Which matrix products of the adapter are left to torch: those of float16 where the processor has AVX512-FP16, which
// torch can use and our kernels cannot. All of them if SFA_CPU_ISA=torch.
struct ByTorch {
  bool float16, rest;
};
ByTorch by_torch();

}  // namespace sfa::cpu
