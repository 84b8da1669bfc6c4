// Which instruction set the kernels of this process use.
#pragma once

namespace sfa::cpu {

enum class Isa { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

// The widest set that the CPU has, or the one that SFA_CPU_ISA names; fixed at the first call.
// Raises if SFA_CPU_ISA names an unknown set or one that this CPU does not have.
Isa isa();

const char* isa_name(Isa isa);

// Whether torch's own matrix products use instructions that our kernels do not have: AMX for bfloat16,
// AVX512-FP16 for float16. There the products are left to torch.
bool torch_has_faster_bf16();
bool torch_has_faster_fp16();

}  // namespace sfa::cpu
