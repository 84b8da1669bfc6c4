// Launching a kernel and what may go wrong with it. Knows the CUDA runtime and no torch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace sfa::cuda {

inline std::string explain(cudaError_t error) {
  const std::string text = std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
  switch (error) {
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
      return text +
             ". The CUDA kernels of sfa_ext were not built for this GPU: `sfa env` says for which they were; build "
             "sfa_ext on this machine, or with TORCH_CUDA_ARCH_LIST naming its compute capability";
    case cudaErrorCallRequiresNewerDriver:
    case cudaErrorInsufficientDriver:
    case cudaErrorUnsupportedPtxVersion:
      return text +
             ". The driver is older than the CUDA kernels of sfa_ext: update it, or build with an older nvcc (CUDACXX)";
    default:
      return text;
  }
}

// Raises if `error` is one; `what` says during what.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch, which asks for it, would report this error as its own
  throw std::runtime_error(std::string(what) + ": " + explain(error));
}

// Lets a kernel use as much dynamic shared memory as the device can give a block. The same for every launch: another
// thread may be about to launch the kernel with more than this one needs.
inline void allow_shared_memory(const void* kernel, const char* name) {
  int device = 0, most = 0;
  check(cudaGetDevice(&device), name);
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), name);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), name);
}

// Starts kernel<<<grid, block, shared_bytes, stream>>>(args...) and raises if it cannot start.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, const Arguments&... args) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (shared_bytes > kWithoutAsking) allow_shared_memory(reinterpret_cast<const void*>(kernel), name);
  kernel<<<grid, block, shared_bytes, stream>>>(args...);
  check(cudaGetLastError(), name);
}

}  // namespace sfa::cuda
