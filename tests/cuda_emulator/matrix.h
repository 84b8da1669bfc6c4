// What ptx.cuh has as PTX, for the emulator: number conversions, cp.async, ldmatrix, mma. Fragment layouts are
// those of the PTX manual.
#pragma once

// Which generation the kernels are to believe they run on, as __CUDA_ARCH__ says it.
#ifndef SFA_EMULATED_ARCH
#define SFA_EMULATED_ARCH 800
#endif

namespace sfa::cuda {

constexpr int kArch = SFA_EMULATED_ARCH;

inline void require_aligned(const void* p, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) emulator::fail(std::string(what) + " from a misaligned address");
}

inline void require_arch(int arch, const char* what) {
  if (kArch < arch) emulator::fail(std::string(what) + " does not exist before sm_" + std::to_string(arch / 10));
}

template <class T = char>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emulator::block->shared);
}

inline int fresh_lane() { return emulator::fiber->lane; }
inline int fresh_thread() { return static_cast<int>(emulator::fiber->thread.x); }

// Numbers
inline float half_to_float(uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
inline uint16_t float_to_half(float v) { return std::bit_cast<uint16_t>(static_cast<_Float16>(v)); }
inline uint16_t float_to_bfloat16(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint32_t round_to_tf32(uint32_t bits) {
  require_arch(800, "cvt.rna.tf32");
  return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & 0xffffe000;
}

// Copies
inline void cp_async_16(void* shared, const void* global, bool valid) {
  require_aligned(shared, 16, "cp.async");
  if (valid) require_aligned(global, 16, "cp.async");
  const emulator::Copy copy{shared, valid ? global : nullptr, 16};
  if (emulator::order.late_copies && kArch >= 800)
    emulator::fiber->open.push_back(copy);
  else
    emulator::finish({copy});
}
inline void cp_async_commit() {
  if (kArch < 800) return;
  emulator::fiber->groups.push_back(std::move(emulator::fiber->open));
  emulator::fiber->open.clear();
}
template <int kPending>
void cp_async_wait() {
  if (kArch < 800) return;
  auto& groups = emulator::fiber->groups;
  while (groups.size() > kPending) {
    emulator::finish(groups.front());
    groups.erase(groups.begin());
  }
}

}  // namespace sfa::cuda

namespace emulator {

// Four 8x8 matrices of 16-bit numbers; lane 8m + r brings the address of row r of matrix m.
inline void ldmatrix(uint32_t (&out)[4], const void* row, bool transpose) {
  sfa::cuda::require_arch(750, "ldmatrix");
  sfa::cuda::require_aligned(row, 16, "ldmatrix");
  meet(transpose ? "ldmatrix.trans" : "ldmatrix", ~0u, row, out, [&](const Meeting& m) {
    for (int lane = 0; lane < 32; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix) {
        const auto number = [&](int r, int c) { return static_cast<const uint16_t*>(m.in[8 * matrix + r])[c]; };
        const int r = lane / 4, c = lane % 4 * 2;
        const uint32_t low = transpose ? number(c, r) : number(r, c);
        const uint32_t high = transpose ? number(c + 1, r) : number(r, c + 1);
        static_cast<uint32_t*>(m.out[lane])[matrix] = low | high << 16;
      }
  });
}

inline float as_half(uint32_t word, int which) {
  return sfa::cuda::half_to_float(static_cast<uint16_t>(word >> 16 * which));
}
inline float as_bfloat16(uint32_t word, int which) {
  return std::bit_cast<float>((which == 0 ? word << 16 : word) & 0xffff0000);
}
inline float as_tf32(uint32_t word, int) { return std::bit_cast<float>(word & 0xffffe000); }

// d[16, 8] += a[16, k] b[k, 8]. A register holds kPack numbers next to each other in k; kParts registers follow each
// other in k. `number` reads one of them.
template <int kPack, int kParts, class Number>
void mma_16x8(const char* operation, float (&d)[4], const uint32_t* a, const uint32_t* b, Number number) {
  struct In {
    const uint32_t *a, *b;
  } in{a, b};
  meet(operation, ~0u, &in, d, [&](const Meeting& m) {
    constexpr int kDepth = kParts * 4 * kPack;
    float left[16][kDepth], right[kDepth][8];
    for (int lane = 0; lane < 32; ++lane) {
      const In& of = *static_cast<const In*>(m.in[lane]);
      for (int part = 0; part < kParts; ++part)
        for (int i = 0; i < kPack; ++i) {
          const int k = (part * 4 + lane % 4) * kPack + i;
          left[lane / 4][k] = number(of.a[2 * part], i);
          left[lane / 4 + 8][k] = number(of.a[2 * part + 1], i);
          right[k][lane / 4] = number(of.b[part], i);
        }
    }
    float sum[16][8] = {};
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < kDepth; ++k)
        for (int column = 0; column < 8; ++column) sum[row][column] += left[row][k] * right[k][column];
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i)
        static_cast<float*>(m.out[lane])[i] += sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  });
}

}  // namespace emulator

namespace sfa::cuda {

inline void ldmatrix_x4(uint32_t (&out)[4], const void* row) { emulator::ldmatrix(out, row, false); }
inline void ldmatrix_x4_trans(uint32_t (&out)[4], const void* row) { emulator::ldmatrix(out, row, true); }

inline void mma_m16n8k16_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  require_arch(800, "mma.m16n8k16");
  emulator::mma_16x8<2, 2>("mma.m16n8k16.f16", d, a, b, emulator::as_half);
}
inline void mma_m16n8k16_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  require_arch(800, "mma.m16n8k16");
  emulator::mma_16x8<2, 2>("mma.m16n8k16.bf16", d, a, b, emulator::as_bfloat16);
}
inline void mma_m16n8k8_half(float (&d)[4], const uint32_t (&a)[2], const uint32_t& b) {
  require_arch(750, "mma.m16n8k8");
  emulator::mma_16x8<2, 1>("mma.m16n8k8.f16", d, a, &b, emulator::as_half);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  require_arch(800, "mma.tf32");
  emulator::mma_16x8<1, 2>("mma.m16n8k8.tf32", d, a, b, emulator::as_tf32);
}

// Four products d[8, 8] += a[8, 4] b[4, 8], one for each pair of quads: lanes 4q..4q+3 and 16+4q..16+4q+3.
inline void mma_m8n8k4_half(float (&d)[8], const uint32_t (&a)[2], const uint32_t (&b)[2]) {
  struct In {
    const uint32_t *a, *b;
  } in{a, b};
  emulator::meet("mma.m8n8k4", ~0u, &in, d, [](const emulator::Meeting& m) {
    for (int quad = 0; quad < 4; ++quad) {
      const auto lane_of = [quad](int index) { return 4 * quad + index % 4 + index / 4 * 16; };
      float left[8][4], right[8][4], sum[8][8] = {};
      for (int index = 0; index < 8; ++index)
        for (int k = 0; k < 4; ++k) {
          const In& of = *static_cast<const In*>(m.in[lane_of(index)]);
          left[index][k] = emulator::as_half(of.a[k / 2], k % 2);
          right[index][k] = emulator::as_half(of.b[k / 2], k % 2);
        }
      for (int row = 0; row < 8; ++row)
        for (int column = 0; column < 8; ++column)
          for (int k = 0; k < 4; ++k) sum[row][column] += left[row][k] * right[column][k];
      for (int index = 0; index < 8; ++index) {
        const int lane = lane_of(index);
        for (int i = 0; i < 8; ++i)
          static_cast<float*>(m.out[lane])[i] +=
              sum[(lane & 1) + (i & 2) + lane / 16 * 4][(i & 4) + (lane & 2) + (i & 1)];
      }
    }
  });
}

// Runs a kernel to its end.
template <class... Parameters, class... Arguments>
void launch(const char* /*name*/, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t /*stream*/, Arguments... arguments) {
  emulator::launch(grid, block, shared_bytes, [=] { kernel(arguments...); });
}

}  // namespace sfa::cuda
