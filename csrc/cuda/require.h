// What a kernel demands of the numbers it is given, where the host cannot look at them without waiting for the device.
#pragma once

#include <cassert>

namespace sfa::cuda {

// Stops the kernel if `holds` is false, with the message on stderr: the next call into CUDA then raises "device-side
// assert triggered", as torch's own indexing does. Stands in release builds too, unlike assert().
__device__ __forceinline__ void require(bool holds, const char* message, const char* op) {
  if (!holds) __assert_fail(message, "torch.ops.sfa", 0, op);
}

}  // namespace sfa::cuda
