// AMX's instructions on processors without them: each raises SIGILL, whose handler does its work and steps over it. So
// the code that runs is what the compiler made for AMX, its order of loads and stores included.
#pragma once

#include <signal.h>
#include <ucontext.h>

namespace emulated_amx {

struct Instruction {  // C4 RXBmmmmm WvvvvLpp opcode modrm [sib] [displacement], as Intel's manual has it
  int prefix, opcode, mod, reg, rm, third;  // prefix: 0 none, 1 66, 2 F3, 3 F2
  int length;
  char* address = nullptr;  // of memory operands
  int64_t stride = 0;       // and what an index register adds for every row
};

inline int64_t displacement(const unsigned char* at, int bytes) {
  if (bytes == 1) return static_cast<signed char>(*at);
  int32_t d = 0;
  std::memcpy(&d, at, bytes);
  return d;
}

inline Instruction decode(const unsigned char* code, const greg_t* registers) {
  static constexpr int kRegister[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                      REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  const bool known = code[0] == 0xc4 && (code[1] & 0x1f) == 2;  // map 0F 38
  require(known, "an illegal instruction that is not one of AMX's");
  const int index_high = ~code[1] >> 3 & 8, base_high = ~code[1] >> 2 & 8;
  Instruction i{.prefix = code[2] & 3,
                .opcode = code[3],
                .mod = code[4] >> 6,
                .reg = code[4] >> 3 & 7,
                .rm = code[4] & 7,
                .third = ~code[2] >> 3 & 15,
                .length = 5};
  if (i.mod == 3) return i;
  int base = i.rm | base_high;
  if (i.rm == 4) {
    const int sib = code[i.length++], index = (sib >> 3 & 7) | index_high;
    base = (sib & 7) | base_high;
    if (index != 4) i.stride = registers[kRegister[index]] << (sib >> 6);
  }
  const bool no_base = i.mod == 0 && (base & 7) == 5;  // then relative to the next instruction, or absolute
  const int bytes = i.mod == 1 ? 1 : (i.mod == 2 || no_base ? 4 : 0);
  int64_t address = displacement(code + i.length, bytes);
  i.length += bytes;
  if (!no_base)
    address += registers[kRegister[base]];
  else if (i.rm == 5)
    address += reinterpret_cast<int64_t>(code + i.length);
  i.address = reinterpret_cast<char*>(address);
  return i;
}

inline void perform(const Instruction& i) {
  const bool memory = i.mod != 3;
  if (i.opcode == 0x49 && i.prefix == 0 && memory) return configure(i.address + i.stride);
  if (i.opcode == 0x49 && i.prefix == 0 && i.rm == 0) return release();
  if (i.opcode == 0x49 && i.prefix == 3 && !memory) return zero(i.reg);
  if (i.opcode == 0x4b && i.prefix == 3 && memory) return load(i.reg, i.address, i.stride);
  if (i.opcode == 0x4b && i.prefix == 2 && memory) return store(i.reg, i.address, i.stride);
  if (i.opcode == 0x5c && i.prefix == 2 && !memory) return multiply(i.reg, i.rm, i.third);
  require(false, "an instruction that is not emulated");
}

inline void on_illegal_instruction(int, siginfo_t*, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const Instruction i = decode(reinterpret_cast<const unsigned char*>(registers[REG_RIP]), registers);
  perform(i);
  registers[REG_RIP] += i.length;
}

inline const bool trapped = [] {
  struct sigaction action = {};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  return sigaction(SIGILL, &action, nullptr) == 0;
}();

}  // namespace emulated_amx
