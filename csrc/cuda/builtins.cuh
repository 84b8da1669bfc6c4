// What a kernel may use: CUDA's own names, and wrappers for what CUDA has only as PTX. They come from nvcc (or NVRTC),
// or, where the kernels are compiled as host C++ to be tested, from tests/cuda_emulator. Kernels include this alone.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#include "ptx.cuh"
#if !defined(__CUDACC_RTC__)
#include "launch.h"
#endif
#else
#include <cuda_emulator.h>
#endif

#include "number.cuh"
