// Runs CUDA kernels as host C++, so that they can be tested where there is no GPU.
//
// How to test a kernel here
//   1. Write the kernel in csrc/cuda/<op>.cuh on top of "builtins.cuh" alone: that header gives it CUDA's own names
//      (threadIdx, __syncthreads, __shfl_xor_sync, atomicAdd, ...) and the wrappers for what CUDA has only as PTX
//      (mma, ldmatrix, cp.async), and comes from nvcc or from here. Shared memory is dynamic: dynamic_shared<T>().
//   2. Let host code start it with launch(name, kernel, grid, block, shared_bytes, stream, arguments...), from a header
//      too, so that grid sizes and shared memory are tested with it.
//   3. Write tests/cuda_emulator/<op>.cpp: draw inputs into Buffer (check.h), run in every Order of all_orders(),
//   compare
//      with a reference in double, expect() that all orders gave the same bits. self_test.cpp is a small example.
//   4. Write tests/cuda_emulator/test_<op>.py: harness.build("<op>") and harness.run(...), once plain, once with
//      sanitize=True, and with replace=[(file, old, new)] for each fault that the test must find.
//
// What it does: one fiber per thread; blocks one after another, in the Order's sequence, so code in which a block waits
// for another one hangs. A thread runs until it reaches a barrier or a warp-wide operation. In the greedy orders one
// warp runs as far as it can before another starts: they find a missing __syncthreads, which others often do not.
// Dynamic shared memory starts as NaN and has a sentinel behind it. cp.async completes at the last moment allowed, or
// at once, as the Order says. Lanes that disagree on a warp-wide operation, exit under one, or wait for ever are an
// error. One host thread: atomics are plain arithmetic.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

using cudaStream_t = void*;
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulator {

struct Order {
  enum class Threads { kForward, kBackward, kShuffled, kGreedyForward, kGreedyBackward } threads = Threads::kForward;
  bool late_copies = true;  // cp.async completes when waited for, not when issued
  unsigned seed = 0;
};

// The orders every kernel is run in; blocks go backward in the backward ones and shuffled in the shuffled one.
inline std::vector<Order> all_orders() {
  using T = Order::Threads;
  return {{T::kForward, true, 0},        {T::kBackward, false, 0},       {T::kShuffled, true, 1},
          {T::kGreedyForward, true, 0},  {T::kGreedyBackward, false, 0}, {T::kGreedyForward, false, 0},
          {T::kGreedyBackward, true, 0}, {T::kShuffled, false, 2}};
}

[[noreturn]] inline void fail(const std::string& message) {
  std::fprintf(stderr, "emulator: %s\n", message.c_str());
  std::fflush(stderr);
  std::_Exit(3);
}

enum class State { kReady, kBarrier, kWarp, kDone };

struct Copy {  // a cp.async that was issued
  void* to;
  const void* from;  // null: zeros
  size_t bytes;
};

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  char* stack = nullptr;
  void* fake_stack = nullptr;
  uint3 thread{};
  int lane = 0, warp = 0;
  State state = State::kReady;
  int barrier_value = 0;
  std::vector<std::vector<Copy>> groups;  // committed cp.async groups, oldest first
  std::vector<Copy> open;                 // issued, not committed
};

struct Meeting {  // lanes of a warp that wait for each other in one warp-wide operation
  unsigned mask = 0, arrived = 0;
  const char* operation = nullptr;
  const void* in[32];
  void* out[32];
};

struct Warp {
  unsigned alive = 0;
  std::vector<Meeting> meetings;
};

constexpr size_t kPage = 4096;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 64 * kPage;
#else
constexpr size_t kStack = 16 * kPage;
#endif
constexpr size_t kSentinel = 256;  // bytes behind dynamic shared memory

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::function<void()> body;
  int waiting = 0, alive = 0, barrier_sum = 0, barrier_result = 0;
  int64_t barriers = 0;
  char* shared = nullptr;
  size_t shared_bytes = 0;
};

inline Order order;
inline Block* block = nullptr;
inline Fiber* fiber = nullptr;
inline Fiber scheduler;
inline dim3 block_index, block_size, grid_size;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_size = 0;

#if defined(__x86_64__)
extern "C" void emulator_switch(void** save, void* to);
asm(R"(
.text
.weak emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
inline void jump(Fiber& from, Fiber& to) { emulator_switch(&from.stack_pointer, to.stack_pointer); }
#else
inline void jump(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
#endif

inline void to_scheduler(bool for_good = false) {
  Fiber& me = *fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &me.fake_stack, scheduler_stack, scheduler_stack_size);
#else
  (void)for_good;
#endif
  jump(me, scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(me.fake_stack, &scheduler_stack, &scheduler_stack_size);
#endif
}

inline void to_fiber(Fiber& next) {
  fiber = &next;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, next.stack, kStack);
#endif
  jump(scheduler, next);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void release_barrier() {
  Block& b = *block;
  if (b.alive == 0 || b.waiting < b.alive) return;
  b.waiting = 0;
  b.barrier_result = b.barrier_sum;
  b.barrier_sum = 0;
  ++b.barriers;
  for (Fiber& f : b.fibers)
    if (f.state == State::kBarrier) f.state = State::kReady;
}

// __syncthreads; returns the sum of `value` over the threads.
inline int barrier(int value = 0) {
  fiber->state = State::kBarrier;
  ++block->waiting;
  block->barrier_sum += value;
  release_barrier();
  if (fiber->state == State::kBarrier) to_scheduler();
  return block->barrier_result;
}

// A warp-wide operation: the last lane of `mask` to arrive carries it out for all by `act(meeting)`.
template <class Act>
void meet(const char* operation, unsigned mask, const void* in, void* out, Act&& act) {
  Warp& w = block->warps[fiber->warp];
  const int lane = fiber->lane;
  if ((mask >> lane & 1) == 0) fail(std::string("a lane calls ") + operation + " with a mask it is not in");
  if ((mask & ~w.alive) != 0) fail(std::string(operation) + " waits for a lane that has exited");
  size_t at = 0;
  while (at < w.meetings.size() && (w.meetings[at].mask & mask) == 0) ++at;
  if (at == w.meetings.size()) w.meetings.push_back({mask, 0, operation, {}, {}});
  Meeting& m = w.meetings[at];
  if (m.mask != mask || m.operation != operation)
    fail(std::string("lanes of a warp disagree: ") + operation + " meets " + m.operation);
  m.in[lane] = in;
  m.out[lane] = out;
  m.arrived |= 1u << lane;
  if (m.arrived != mask) {
    fiber->state = State::kWarp;
    return to_scheduler();
  }
  const Meeting complete = m;
  w.meetings.erase(w.meetings.begin() + at);
  act(complete);
  for (int i = 0; i < 32; ++i)
    if (i != lane && (mask >> i & 1) != 0) block->fibers[fiber->warp * 32 + i].state = State::kReady;
}

inline void finish(const std::vector<Copy>& copies) {
  for (const Copy& c : copies) {
    if (c.from == nullptr)
      std::memset(c.to, 0, c.bytes);
    else
      std::memcpy(c.to, c.from, c.bytes);
  }
}

inline void run_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  block->body();
  Fiber& me = *fiber;
  me.state = State::kDone;
  Warp& w = block->warps[me.warp];
  if (!w.meetings.empty()) fail("a lane exits while its warp waits in a warp-wide operation");
  if (!me.groups.empty() || !me.open.empty()) fail("a thread exits with cp.async copies it did not wait for");
  w.alive &= ~(1u << me.lane);
  --block->alive;
  release_barrier();
  to_scheduler(true);
  fail("a finished fiber was resumed");
}

// Stacks are kept between launches; each has a page below it that must not be touched.
inline char* stack_of(size_t index) {
  static std::vector<char*> stacks;
  while (stacks.size() <= index) {
    void* p = mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p, kPage, PROT_NONE) != 0) fail("no memory for stacks");
    stacks.push_back(static_cast<char*>(p) + kPage);
  }
  return stacks[index];
}

inline void prepare(Fiber& f) {
  f.state = State::kReady;
  f.fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(f.stack, kStack);
#endif
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(f.stack + kStack);
  *--top = nullptr;  // keeps the stack aligned as the ABI wants it at a function's entry
  *--top = reinterpret_cast<void*>(&run_fiber);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  f.stack_pointer = top;
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack;
  f.context.uc_stack.ss_size = kStack;
  f.context.uc_link = nullptr;
  makecontext(&f.context, &run_fiber, 0);
#endif
}

// Runs the threads first..last as far as they get; whether any ran.
inline bool sweep(const std::vector<int>& sequence, size_t first, size_t last) {
  bool ran = false;
  for (size_t i = first; i < last; ++i) {
    Fiber& f = block->fibers[sequence[i]];
    if (f.state != State::kReady) continue;
    to_fiber(f);
    ran = true;
  }
  return ran;
}

inline void run_block(std::mt19937& random) {
  Block& b = *block;
  const size_t threads = b.fibers.size();
  b.alive = static_cast<int>(threads);
  b.waiting = 0;
  for (Warp& w : b.warps) w = {};
  for (size_t i = 0; i < threads; ++i) {
    Fiber& f = b.fibers[i];
    const unsigned t = static_cast<unsigned>(i);
    f.thread = {t % block_size.x, t / block_size.x % block_size.y, t / block_size.x / block_size.y};
    f.lane = static_cast<int>(i % 32);
    f.warp = static_cast<int>(i / 32);
    b.warps[f.warp].alive |= 1u << f.lane;
    prepare(f);
  }
  std::memset(b.shared, 0xff, b.shared_bytes);
  std::memset(b.shared + b.shared_bytes, 0xa5, kSentinel);
  using T = Order::Threads;
  const bool greedy = order.threads == T::kGreedyForward || order.threads == T::kGreedyBackward;
  const bool backward = order.threads == T::kBackward || order.threads == T::kGreedyBackward;
  std::vector<int> sequence(threads);
  std::iota(sequence.begin(), sequence.end(), 0);
  if (backward) std::reverse(sequence.begin(), sequence.end());
  if (order.threads == T::kShuffled) std::shuffle(sequence.begin(), sequence.end(), random);
  const size_t step = greedy ? 32 : threads;
  const size_t first_step = greedy && backward && threads % 32 != 0 ? threads % 32 : step;
  while (b.alive > 0) {
    bool ran = false;
    for (size_t first = 0, last = std::min(first_step, threads); first < threads;
         first = last, last = std::min(last + step, threads)) {
      while (sweep(sequence, first, last)) {
        ran = true;
        if (!greedy) break;
      }
    }
    if (!ran && b.alive > 0)
      fail("deadlock: threads wait for each other at different barriers or warp-wide operations");
  }
  for (size_t i = 0; i < kSentinel; ++i)
    if (b.shared[b.shared_bytes + i] != static_cast<char>(0xa5)) fail("a write behind the dynamic shared memory");
}

inline void launch(dim3 grid, dim3 size, size_t shared_bytes, std::function<void()> body) {
  const size_t threads = size_t{size.x} * size.y * size.z, blocks = size_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > 1024) fail("a block of " + std::to_string(threads) + " threads");
  if (blocks == 0 || grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffff) fail("a grid that CUDA refuses");
  Block b;
  b.fibers.resize(threads);
  b.warps.resize((threads + 31) / 32);
  b.body = std::move(body);
  for (size_t i = 0; i < threads; ++i) b.fibers[i].stack = stack_of(i);
  b.shared_bytes = shared_bytes;
  b.shared = static_cast<char*>(std::aligned_alloc(1024, (shared_bytes + kSentinel + 1023) / 1024 * 1024));
  block = &b;
  grid_size = grid;
  block_size = size;
  std::mt19937 random(order.seed);
  std::vector<size_t> sequence(blocks);
  std::iota(sequence.begin(), sequence.end(), size_t{0});
  using T = Order::Threads;
  if (order.threads == T::kBackward || order.threads == T::kGreedyBackward)
    std::reverse(sequence.begin(), sequence.end());
  if (order.threads == T::kShuffled) std::shuffle(sequence.begin(), sequence.end(), random);
  for (size_t i : sequence) {
    block_index = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    run_block(random);
  }
  std::free(b.shared);
  block = nullptr;
}

}  // namespace emulator

#define threadIdx (::emulator::fiber->thread)
#define blockIdx (::emulator::block_index)
#define blockDim (::emulator::block_size)
#define gridDim (::emulator::grid_size)

#include "intrinsics.h"
#include "matrix.h"
