// What a kernel demands of the numbers it is given, where the host cannot look at them without waiting for the device.
#pragma once

#include "builtins.cuh"

#if !defined(__CUDACC_RTC__)
// <cassert> declares it only in debug builds.
extern "C" __host__ __device__ void __assert_fail(const char* message, const char* file, unsigned int line,
                                                  const char* function) noexcept __attribute__((__noreturn__));
#endif

namespace sfa::cuda {

// Stops the kernel if `holds` is false, with the message on stderr: the next call into CUDA then raises "device-side
// assert triggered", as torch's own indexing does.
__device__ __forceinline__ void require(bool holds, const char* message, const char* op) {
  if (holds) return;
#if defined(__CUDACC_RTC__)
  __assertfail(message, "torch.ops.sfa", 0, op, sizeof(char));
#else
  __assert_fail(message, "torch.ops.sfa", 0, op);
#endif
}

}  // namespace sfa::cuda
